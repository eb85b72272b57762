"""The Prefect flows: `distill` and its three parts, each of which can also be run alone.

    distill
    ├── build_data         source, images, annotations, features, segments, prompts, samples
    ├── train_student      vocabulary, train
    └── evaluate_student   predictions, report

The flow that is called itself (not as a part of another) looks ahead: it takes away what `rebuild` names, once, and refuses
what is stale before any work is done. A retry of it finds what is missing and goes on.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, get_args

from prefect import flow, tags
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed

from flows import pages
from flows.config import Project
from flows.graph import Part, Step, artifacts, below, choose, steps_of
from flows.results import metrics_of, picture_of
from flows.states import StepResult, clear, refuse_stale, state_of
from flows.steps import as_task
from schemas.artifact import Artifact
from schemas.errors import ConfigError, DataError
from schemas.storage import Folder
from stages.weights import ABSENT


@dataclass(frozen=True)
class Run:
    """What one call of a flow is about: the steps it shall see to (`chosen`), and for each step that is made anew, or may be
    because its inputs are, the step whose rebuild it is part of (`rebuilt`)."""

    config: Project
    steps: Sequence[Step]
    artifacts: Mapping[str, Artifact]
    chosen: Sequence[str]
    rebuilt: Mapping[str, str]

    @classmethod
    def of(cls, config: Project, only: Sequence[str], rebuild: Sequence[str], part: Part | None = None) -> "Run":
        """A run of the whole, or of one part alone."""
        steps = steps_of(config)
        named = choose(steps, rebuild, "--rebuild")
        rebuilt = {step: name for name in named for step in below(steps, [name])} | {name: name for name in named}
        within = [step.name for step in steps if part in (None, step.part)]
        chosen = choose(steps, only, "--only") if only else within
        _refuse_beyond(chosen, within, "--only")
        _refuse_beyond(named, chosen, "--rebuild")
        return cls(config, steps, artifacts(steps, Folder(config.workspace)), chosen, rebuilt)

    def of_part(self, part: Part) -> list[Step]:
        """The chosen steps of it, each beside chosen ones only."""
        mine = [step for step in self.steps if step.part == part and step.name in self.chosen]
        return [replace(step, beside=[each for each in step.beside if each.name in self.chosen]) for step in mine]

    def look_ahead(self) -> None:
        """Refuse what cannot be made; take away what is to be made anew, on the first attempt only; refuse what is stale."""
        chosen = [step for step in self.steps if step.name in self.chosen]
        for step in chosen:
            self._demand_outside(step)
        self._demand_vouchers(chosen)
        if flow_run.run_count == 1:
            for step in filter(self._is_taken_away, chosen):
                clear(self.artifacts[step.name])
        for step in chosen:
            state = state_of(self.artifacts[step.name], step.inputs_in(self.artifacts))
            if not (state.by_inputs and step.name in self.rebuilt):
                refuse_stale(self.artifacts[step.name], state, step.name)

    def _demand_vouchers(self, chosen: Sequence[Step]) -> None:
        """A passport that is made anew would vouch for features that were made before it."""
        anew = {step.name for step in chosen if self._is_taken_away(step)}
        for step in self.steps:
            passport = step.gates.get("passport")
            if passport in anew and step.name not in anew and state_of(self.artifacts[step.name]).kind != "missing":
                what = f"it would vouch for {step.name}, which was made before it"
                raise ConfigError(what, f"--rebuild {passport}", f"Add --rebuild {step.name}, or bring back what changed.")

    def _is_taken_away(self, step: Step) -> bool:
        return self.rebuilt.get(step.name) == step.name

    def _demand_outside(self, step: Step) -> None:
        """What was made from things that are gone may be kept, but not made anew."""
        outside = step.stage.outside() if self._is_taken_away(step) else self.artifacts[step.name].identity["outside"]
        for key in (key for key, digest in outside.items() if digest == ABSENT):
            remedy = "Download them and set `folder` in the teacher's config."
            raise DataError(f"the {key} that it needs are not there", step.name, remedy)


def _refuse_beyond(names: Sequence[str], within: Sequence[str], option: str) -> None:
    beyond = [name for name in names if name not in within]
    if beyond:
        raise ConfigError(f"this run does not make {', '.join(beyond)}", option, f"It makes {', '.join(within)}.")


# The run of which a part is a part: it has been planned, and the digests of what lies outside the store taken, once.
_WHOLE: ContextVar[Run | None] = ContextVar("whole", default=None)


def _run_name() -> str:
    """What a person looks for in a list of runs."""
    given = flow_run.parameters
    words = [f"{option} {', '.join(given[option])}" for option in ("only", "rebuild") if given.get(option)]
    return " · ".join([given["config"].name, *words])


@flow(name="build_data", flow_run_name=_run_name, persist_result=False)
def build_data(config: Project, only: list[str] | None = None, rebuild: list[str] | None = None) -> Any:
    """From pictures to teacher features, visual prompts and dialogues."""
    return _see_to("build_data", config, only or [], rebuild or [])


@flow(name="train_student", flow_run_name=_run_name, persist_result=False)
def train_student(config: Project, only: list[str] | None = None, rebuild: list[str] | None = None) -> Any:
    """From dialogues and features to a trained student."""
    return _see_to("train_student", config, only or [], rebuild or [])


@flow(name="evaluate_student", flow_run_name=_run_name, persist_result=False)
def evaluate_student(config: Project, only: list[str] | None = None, rebuild: list[str] | None = None) -> Any:
    """From a student to its predictions, its metrics and the report."""
    return _see_to("evaluate_student", config, only or [], rebuild or [])


def _see_to(part: Part, config: Project, only: list[str], rebuild: list[str]) -> Any:
    run = _WHOLE.get()
    if run is None:
        run = Run.of(config, only, rebuild, part)
        run.look_ahead()
    tasks = [as_task(step, run.artifacts, run.rebuilt.get(step.name, ""), config) for step in run.of_part(part)]
    return _finished([task().result() for task in tasks])


@flow(name="distill", flow_run_name=_run_name, persist_result=False)
def distill(config: Project, only: list[str] | None = None, rebuild: list[str] | None = None) -> Any:
    """Everything: pictures in, an evaluated student and a report out. What is there already is reused.

    Args:
        config: The whole project, as in its TOML file.
        only: Steps to make alone, from complete inputs; none means all.
        rebuild: Steps to take away and make anew; what follows from them is then made anew where it differs.
    """
    run = Run.of(config, only or [], rebuild or [])
    run.look_ahead()
    token = _WHOLE.set(run)
    try:
        parts = zip(get_args(Part), (build_data, train_student, evaluate_student), strict=True)
        made = [one for part, flow_of in parts if run.of_part(part) for one in flow_of(config, only, rebuild)]
    finally:
        _WHOLE.reset(token)
    pages.show_run(config.name, made)
    metrics = metrics_of(run.artifacts)
    if metrics:
        pages.show_report(config.name, run.artifacts["report"], metrics)
    if any(one.step == "report" and one.how == "computed" for one in made):
        pages.show_picture(config.name, picture_of(run.artifacts))
    return _finished(made)


def start(config: Project, only: list[str] | None, rebuild: list[str] | None) -> list[StepResult]:
    """Call `distill` from a program, under the tags that runs of a deployment have too. Whoever calls it sees that it lives:
    it does without heartbeats, which would take up to a second to stop at the end of each flow."""
    with tags("sailyard", config.name), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return distill(config, only, rebuild)


def _finished(made: list[StepResult]) -> Any:
    counts = Counter(one.how for one in made)
    return Completed(message=", ".join(f"{count} {how}" for how, count in sorted(counts.items())), data=made)
