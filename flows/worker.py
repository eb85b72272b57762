"""A run under torchrun, which starts one command many times over: `run CONFIG --only train`.

The first worker carries the step out as ever, with Prefect and the record, and none of it knows of the others. These look at
the store as it does, train beside it, and make nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from flows.config import Project
from flows.graph import Step, artifacts, steps_of
from flows.states import refuse_unready, state_of
from schemas.artifact import Artifact
from schemas.errors import ConfigError
from schemas.storage import Folder
from stages.base import JobStage

STEP = "train"
Made = Mapping[str, Artifact]


@contextmanager
def group(
    project: Project, only: Sequence[str], rebuild: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Project | None]:
    """The project for whoever carries the run out: as it is where torchrun has not started this process, for the first worker
    as it runs there, and None for the others, once they have trained."""
    if "TORCHELASTIC_RUN_ID" not in environment:
        yield project
        return
    from student.training import parallel, torchrun

    _check(only, rebuild, int(environment["TORCHELASTIC_MAX_RESTARTS"]))
    mine = _placed(project, int(environment["LOCAL_RANK"]))
    steps = steps_of(mine)
    step, made = next(step for step in steps if step.name == STEP), artifacts(steps, Folder(mine.workspace))
    device = step.resources.device
    with torchrun.joined(device):
        wanted = parallel.on_all(partial(_is_wanted, step, made, anew=bool(rebuild)), device)
        first = parallel.worker()[0] == 0
        if wanted and not first:
            _train(step, made)
        yield mine if first else None


def _check(only: Sequence[str], rebuild: Sequence[str], restarts: int) -> None:
    if [*only] != [STEP] or {*rebuild} - {STEP}:
        remedy = f"Add --only {STEP}, and make the rest with `sailyard run` alone."
        raise ConfigError(f"torchrun's workers make the step {STEP} together, and nothing else", "torchrun", remedy)
    if rebuild and restarts:
        what = f"each of --max-restarts {restarts} would take away what was trained"
        raise ConfigError(what, f"--rebuild {STEP}", "Leave one of them out.")


def _placed(project: Project, local: int) -> Project:
    """The project with training in this very process, on the device of its number on this machine. A second try would be the
    first worker's alone, so Prefect makes none: torchrun's own --max-restarts starts all of them anew."""
    resources, device = project.resources, project.resources.of(STEP).device
    own = {"executor": "local", "device": f"cuda:{local}" if device.startswith("cuda") else device}
    steps = {**resources.steps, STEP: {**resources.steps.get(STEP, {}), **own}}
    return project.model_copy(update={"resources": resources.model_copy(update={"steps": steps}), "retries": 0})


def _is_wanted(step: Step, made: Made, *, anew: bool) -> bool:
    """Whether there is something to train; what cannot be begun is refused here, on all workers, and nobody waits for one."""
    inputs, output = step.inputs_in(made), made[step.name]
    state = state_of(output, inputs)
    if state.kind == "done" and not anew:
        return False
    refuse_unready(output, state, inputs | step.gates_in(made), step.name, anew=anew)
    return True


def _train(step: Step, made: Made) -> None:
    assert isinstance(step.stage, JobStage)
    step.stage.run(step.inputs_in(made) | step.gates_in(made), made[step.name], step.resources, _unseen)


def _unseen(done: int, total: int, unit: str, note: str = "") -> None:
    """The first worker tells how far it is."""
