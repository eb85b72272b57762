"""The one seam between a step of the DAG and a Prefect task: done? -> make what is missing -> seal -> tell.

The store decides what is done; Prefect caches and persists nothing. A task that is retried comes in here again and finds
what the last attempt left. Its final state says whether the step was computed or reused, and why.
"""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import State as PrefectState
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import Completed

from flows import pages
from flows.config import Project
from flows.graph import Step
from flows.progress import Meter
from flows.states import State, StepResult, begin, clear, refuse_unready, state_of
from flows.works import along, is_whole, joint_work
from schemas.artifact import Artifact
from schemas.errors import (
    BrokenArtifact,
    ConfigError,
    DataError,
    MissingLibrary,
    NonFinite,
    Preempted,
    SailyardError,
    StaleArtifact,
)
from stages.base import JobStage, MapStage, Outcome, Progress
from stages.forecast import ONE_PASS, ONE_PASS_BY

FOLDERS = ("flows", "schemas", "stages", "student", "teachers")
PACKAGES = (
    "apache-beam",
    "numpy",
    "pillow",
    "prefect",
    "pyarrow",
    "pycocotools",
    "pydantic",
    "ray",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
# Errors that come back however often one tries.
LASTING = (BrokenArtifact, ConfigError, DataError, MissingLibrary, NonFinite, Preempted, StaleArtifact)


def make_step(step: Step, artifacts: Mapping[str, Artifact], progress: Progress, *, rebuild: str = "") -> StepResult:
    """Make the artifact of `step` as far as it is missing, and seal it. `rebuild` names the step whose rebuild it is part of:
    then what was made from other inputs is made anew."""
    output, inputs = artifacts[step.name], step.inputs_in(artifacts)
    before = state_of(output, inputs)
    if before.kind == "done":
        return StepResult(
            step.name, "reused", f"complete as {output.fingerprint[:8]}", before, _failed(output), 0.0, output.where
        )
    anew = bool(rebuild) and before.by_inputs
    refuse_unready(output, before, inputs | step.gates_in(artifacts), step.name, anew=anew)
    if anew:
        clear(output)
    started = _now()
    begin(output, inputs)
    outcome = _carry_out(step, artifacts, output, progress)
    output.seal(
        started.isoformat(),
        _now().isoformat(),
        inputs,
        code=code_version(),
        packages=package_versions(),
        summary=outcome.summary | ({"notes": notes} if (notes := step.stage.notes()) else {}),
        failures=outcome.failures,
    )
    seconds = (_now() - started).total_seconds()
    why = _why(before, rebuild, outcome.summary.get(ONE_PASS_BY, ""))
    return StepResult(step.name, "computed", why, state_of(output), _failed(output), seconds, output.where)


def _carry_out(step: Step, artifacts: Mapping[str, Artifact], output: Artifact, progress: Progress) -> Outcome:
    match step.stage:
        case MapStage():
            return _map(step, artifacts, progress)
        case JobStage():
            inputs = {role: artifacts[name] for role, name in step.inputs.items()} | step.gates_in(artifacts)
            return step.stage.run(inputs, output, step.resources, progress)
        case other:
            raise TypeError(f"{type(other).__name__} is neither a MapStage nor a JobStage")


def _map(step: Step, artifacts: Mapping[str, Artifact], progress: Progress) -> Outcome:
    from stages.executor import run_map

    others = along(step, artifacts)
    for other in others:
        begin(artifacts[other.name], other.inputs_in(artifacts))
    try:
        outcome = run_map(joint_work(step, others, artifacts), progress)
    except SailyardError as error:
        if others and not is_whole(artifacts[step.name]):
            names = ", ".join(each.name for each in (step, *others))
            error.remedy += f" These shared a pass: {names}. Each goes by itself with --set resources.one_pass=false."
        raise
    told = {ONE_PASS: [other.name for other in others]} if others else _made_by(step, artifacts, outcome)
    return replace(outcome, summary=outcome.summary | told)


def _made_by(step: Step, artifacts: Mapping[str, Artifact], outcome: Outcome) -> dict[str, str]:
    """The step in whose pass all of its shards were made."""
    if outcome.summary["shards_made"]:
        return {}
    records = {name: record for name, each in artifacts.items() if (record := each.record())}
    by = [name for name, record in records.items() if step.name in record.summary.get(ONE_PASS, ())]
    return {ONE_PASS_BY: by[0]} if by else {}


def _why(before: State, rebuild: str, by: str) -> str:
    found = f"{before.done} of {before.total or 'some'} were there" if before.kind == "partial" else "nothing was there"
    found = f"made in the pass of {by}" if by else found
    return (before.reason or found) + (f", under the rebuild of {rebuild}" if rebuild else "")


def _failed(artifact: Artifact) -> int:
    record = artifact.record()
    return record.failed if record else 0


def _now() -> datetime:
    return datetime.now(UTC)


def code_version() -> str:
    """The package's version and a digest of its source: two records with the same one were made by the same code."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{importlib.metadata.version('sailyard')}+{digest.hexdigest()[:12]}"


def package_versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def as_task(step: Step, artifacts: Mapping[str, Artifact], rebuild: str, project: Project) -> Task[[], Any]:
    """The Prefect task of one step. Called, it gives its final state, which is named Computed or Reused, says why, and holds
    the `StepResult`."""

    @task(
        name=type(step.stage).__name__,
        task_run_name=step.name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=project.retries,
        retry_delay_seconds=project.retry_delay,
        retry_condition_fn=_worth_another_try,
    )
    def make() -> Any:
        bar = pages.Bar(project.name, step.name)
        with Meter(step.name, bar.draw, bar.hang, bar.lay) as meter:
            made = make_step(step, artifacts, meter, rebuild=rebuild)
            meter.say(pages.line(made))
        pages.show_step(project.name, made)
        record = artifacts[step.name].record()
        if record and "codecs" in record.summary:
            pages.show_certificate(project.name, made, record.summary["codecs"])
        return Completed(name=made.how.capitalize(), message=made.why, data=made)

    return make


def _worth_another_try(task: Any, run: TaskRun, state: PrefectState[Any]) -> bool:
    return not isinstance(state.result(raise_on_failure=False), LASTING)
