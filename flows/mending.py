"""Rows of a step made anew, and the step sealed again as it was: what `retry`, `waive` and `verify --heal` have in common.

The record goes first. A crash in between leaves a half-made artifact, which the next run completes and seals.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flows.graph import Step
from flows.states import refuse_stale, state_of
from flows.works import work_of
from schemas.artifact import RECORD, Artifact, Record
from schemas.errors import BrokenArtifact, ConfigError
from stages.base import MapStage, judge

if TYPE_CHECKING:
    from stages.executor import Work

_ROW_LINE = re.compile(r"shard \d+: ")


def is_mendable(step: Step) -> bool:
    """Whether single rows of it can be made."""
    return isinstance(step.stage, MapStage)


def complete_work_of(step: Step, artifacts: Mapping[str, Artifact]) -> "Work":
    """What a worker must know to make rows of `step`; everything that they are made from must be complete."""
    if not is_mendable(step):
        raise ConfigError(f"{step.name} is made as a whole, not row by row", "step", f"Run with --rebuild {step.name}.")
    for name in {**step.roles, **step.gates}.values():
        if (kind := state_of(artifacts[name]).kind) != "done":
            raise BrokenArtifact(f"{step.name} is made from {name}, which is {kind}", step.name, "Run first.")
    return work_of(step, artifacts)


def mend_rows(step: Step, artifacts: Mapping[str, Artifact], rows: Mapping[int, Sequence[int] | None]) -> None:
    """Make these rows of each shard anew, all where none is named. What was sealed is sealed again; `StageFailed` if then too
    many rows fail."""
    from stages.mend import Mender

    output = artifacts[step.name]
    refuse_stale(output, state_of(output, step.inputs_in(artifacts)), step.name)
    mender, record = Mender(complete_work_of(step, artifacts)), output.record()
    output.folder.remove(RECORD)
    for number, some in sorted(rows.items()):
        mender.mend(number, some)
    if record is not None:
        seal_again(step, artifacts, record, _told(record, sum(len(some or ()) for some in rows.values())))


def _told(record: Record, rows: int) -> dict[str, Any]:
    """Of all rows that were made again: how many, and of the last of them when and by which code."""
    from flows.steps import code_version

    count = record.summary.get("rows_made_again", 0) + rows
    return {"rows_made_again": count, "made_again_at": datetime.now(UTC).isoformat(), "made_again_by": code_version()}


def seal_again(step: Step, artifacts: Mapping[str, Artifact], record: Record, summary: Mapping[str, Any]) -> None:
    """The record as it was, with its times and the code that made most of the rows, of what lies there now. It had been
    sealed with so many failed rows, and may be so again."""
    output = artifacts[step.name]
    others = [line for line in record.failures if not _ROW_LINE.match(line)]
    rate = max(step.resources.max_error_rate, record.failed / max(record.rows, 1))
    output.seal(
        record.started,
        record.ended,
        step.inputs_in(artifacts),
        code=record.code,
        packages=record.packages,
        summary={**record.summary, **summary},
        failures=judge(output, rate) + others,
    )
