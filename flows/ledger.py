"""The ledger of failed rows: which there are, which are tried again, and which may stay as they are."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.config import Project
from flows.graph import Step, artifacts, choose, steps_of
from flows.mending import is_mendable, mend_rows, seal_again
from flows.states import state_of
from flows.words import grid
from schemas.artifact import Artifact
from schemas.errors import ConfigError
from schemas.row_errors import ErrorClass, RowError
from schemas.storage import Folder
from stages.base import failed_rows
from stages.waivers import Waiver, add_waivers, read_waivers


@dataclass(frozen=True)
class Entry:
    """A failed row. `waived` says why it may fail; None where it may not."""

    step: str
    shard: int
    row: int
    key: str
    kind: ErrorClass
    attempts: int
    trace: str
    message: str
    waived: str | None


@dataclass(frozen=True)
class Retried:
    """How many rows of a step were tried again, how many of those still fail, and what was made from them."""

    step: str
    tried: int
    still: int
    made_from_it: Sequence[str]

    def __str__(self) -> str:
        line = f"{self.step}: {self.tried - self.still} of {self.tried} rows pass now"
        stale = self.made_from_it if self.tried > self.still else ()
        again = " ".join(f"--rebuild {name}" for name in stale)
        return line + (f"; without them were made: {', '.join(stale)} (run with {again})" if stale else "")


class Ledger:
    """The failed rows of all steps, or of those that `step` names."""

    def __init__(self, steps: Sequence[Step], workspace: Folder, step: str | None = None):
        self.steps = {each.name: each for each in steps}
        self.artifacts = artifacts(steps, workspace)
        chosen = choose(steps, [step], "--step") if step else list(self.steps)
        self.chosen = [self.steps[name] for name in chosen if (table := self.artifacts[name].table) and table.has_errors]

    @classmethod
    def of(cls, project: Project, step: str | None = None) -> "Ledger":
        return cls(steps_of(project), Folder(project.workspace), step)

    def entries(self) -> Iterator[Entry]:
        for step in self.chosen:
            yield from _entries(self.artifacts[step.name])

    def retry(self, kind: ErrorClass) -> Iterator[Retried]:
        """Try exactly the failed rows of this class again, and only those; steps that are made as a whole are left out."""
        for step in filter(is_mendable, self.chosen):
            rows = _by_shard(each for each in _entries(self.artifacts[step.name]) if each.kind == kind)
            if rows:
                mend_rows(step, self.artifacts, rows)
                left = _by_shard(_entries(self.artifacts[step.name]))
                still = sum(len({*some} & {*left.get(number, ())}) for number, some in rows.items())
                yield Retried(step.name, sum(map(len, rows.values())), still, self._made_from(step))

    def waive(self, why: str, kind: ErrorClass | None = None, key: str | None = None) -> list[Entry]:
        """Waive the failed rows of this class and this key; returns those that were not waived before."""
        if not why.strip():
            raise ConfigError("a waiver without a reason", "--why", "Say why these rows may fail.")
        asked = [each for each in self.entries() if kind in (None, each.kind) and key in (None, each.key)]
        if not asked:
            raise ConfigError("no failed row is meant", "waive", "`sailyard ledger` lists them all.")
        for step in self.chosen:
            meant = [Waiver(each.key, each.kind, each.message, why) for each in asked if each.step == step.name]
            if meant:
                add_waivers(self.artifacts[step.name], meant)
                self._tell(step)
        return [each for each in asked if each.waived is None]

    def _tell(self, step: Step) -> None:
        """Let the record of a step that is complete name what is waived."""
        output = self.artifacts[step.name]
        record = output.record()
        if record is not None and state_of(output, step.inputs_in(self.artifacts)).kind == "done":
            seal_again(step, self.artifacts, record, {})

    def _made_from(self, step: Step) -> list[str]:
        """The steps that have been made from this one."""
        users = (each for each in self.steps.values() if step.name in each.roles.values())
        return [each.name for each in users if self.artifacts[each.name].record() is not None]


def _entries(artifact: Artifact) -> Iterator[Entry]:
    waivers = read_waivers(artifact)
    for shard, row, key, line in failed_rows(artifact, artifact.found()):
        error, why = RowError.parse(line), waivers.why(key, line)
        yield Entry(artifact.name, shard, row, key, error.kind, error.attempts, error.trace, error.message, why)


def _by_shard(entries: Any) -> Mapping[int, list[int]]:
    rows: dict[int, list[int]] = defaultdict(list)
    for each in entries:
        rows[each.shard].append(each.row)
    return rows


def as_table(entries: Sequence[Entry]) -> str:
    if not entries:
        return "no row has failed"
    head = ("step", "shard", "key", "class", "attempts", "trace", "what")
    return grid([head, *map(_cells, entries)])


def _cells(entry: Entry) -> tuple[str, ...]:
    waived = f" (waived: {entry.waived})" if entry.waived is not None else ""
    numbers = str(entry.shard), entry.key, entry.kind, str(entry.attempts), entry.trace or "-"
    return entry.step, *numbers, entry.message + waived
