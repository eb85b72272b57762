"""From a step of the DAG to what the executor carries out, and which other steps are made along with it.

Steps that show the same pictures to their teachers with the same resources can share one pass: whichever is made first takes
along those that lack every shard that it lacks, and their own turn finds these done.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flows.graph import Step
from flows.states import state_of
from schemas.artifact import Artifact
from stages.base import MapStage, ShardWork

if TYPE_CHECKING:
    from stages.executor import Work


def work_of(step: Step, artifacts: Mapping[str, Artifact]) -> "Work":
    """What a worker must know to make shards of `step`, which is made by a MapStage."""
    from stages.executor import Work

    assert isinstance(step.stage, MapStage)
    inputs = {role: artifacts[name] for role, name in step.inputs.items()}
    whole = {role: artifacts[name] for role, name in step.whole.items()} | step.gates_in(artifacts)
    return Work(step.stage, inputs, whole, artifacts[step.name], step.resources)


def along(step: Step, artifacts: Mapping[str, Artifact]) -> list[Step]:
    """The steps beside `step` of which now every shard that it lacks is lacking too, and can be made."""
    lacking = _lacking(artifacts[step.name]) if step.beside else set()
    return [other for other in step.beside if lacking and lacking <= _can_be_made(other, artifacts)]


def _can_be_made(step: Step, artifacts: Mapping[str, Artifact]) -> set[int]:
    """The shards that it lacks, if all that it takes in is complete, and nothing made of anything else lies there."""
    output, inputs = artifacts[step.name], step.inputs_in(artifacts)
    is_open = output.record() is None and state_of(output, inputs).kind in ("missing", "partial")
    is_fed = all(state_of(each).kind == "done" for each in (inputs | step.gates_in(artifacts)).values())
    return _lacking(output) if is_open and is_fed else set()


def is_whole(artifact: Artifact) -> bool:
    """Whether all of its shards are there."""
    return not _lacking(artifact)


def _lacking(artifact: Artifact) -> set[int]:
    return set(range(artifact.shards)) - artifact.found().keys()


def joint_work(step: Step, others: Sequence[Step], artifacts: Mapping[str, Artifact]) -> ShardWork:
    """The work of `step` that makes shards of `others` in the same pass."""
    from stages.together import Together

    work = work_of(step, artifacts)
    return Together((work, *(work_of(other, artifacts) for other in others))) if others else work
