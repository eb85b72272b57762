"""The DAG: which steps there are, what each takes in, and how artifacts get their identities from that. Nothing else in
the house knows which step follows which."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flows.config import Project
from schemas.artifact import Artifact
from schemas.codecs import codec_of
from schemas.errors import ConfigError
from schemas.storage import Folder
from schemas.tables import Table
from stages.annotations import AnnotationsStage
from stages.base import Resources, Stage
from stages.basis import BasisStage
from stages.certificate import CertificateStage
from stages.features import FeaturesStage
from stages.passport import PassportStage
from stages.pool import PoolStage
from stages.predict import PredictStage
from stages.prompts import PromptsStage
from stages.segments import SegmentsStage
from stages.source import SourceStage
from stages.sources.config import CocoSource
from stages.sources.shapes.config import ShapesConfig
from stages.teach import TeachStage, taught
from stages.train import TrainStage
from stages.vocabulary import VocabularyStage
from stages.weights import ABSENT
from teachers.config import TeacherConfig
from teachers.mask2former.config import Mask2FormerConfig

Part = Literal["build_data", "train_student", "evaluate_student"]
WEIGHTS: tuple[Literal["trained", "untrained"], ...] = ("trained", "untrained")


@dataclass(frozen=True)
class Step:
    """A stage in its place. `name` is also where its artifact lies in the workspace. `inputs` and `whole` map the roles that
    the stage knows to names of steps: a MapStage is handed `inputs` shard by shard and `whole` as they are, a JobStage all
    as they are. `gates` are handed over like `whole`, but are no part of what the stage's artifact is known by: it looks at
    them and goes on or refuses, or it says in what it makes which they were. `beside` are later steps that can be made in the
    same pass."""

    name: str
    part: Part
    stage: Stage
    inputs: Mapping[str, str] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    shards: int = 0
    resources: Resources = field(default_factory=Resources)
    gates: Mapping[str, str] = field(default_factory=dict)
    beside: Sequence["Step"] = ()

    def inputs_in(self, artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
        """What it is made from, by role."""
        return {role: artifacts[name] for role, name in self.roles.items()}

    def gates_in(self, artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
        return {role: artifacts[name] for role, name in self.gates.items()}

    @property
    def roles(self) -> dict[str, str]:
        return {**self.inputs, **self.whole}


def steps_of(project: Project) -> list[Step]:
    """Every step of the project, each after those it takes in."""
    steps = [*_data(project), *_training(project), *_evaluation(project)]
    steps.append(Step("report", "evaluate_student", project.report, _same(*_names(steps))))
    for name in project.resources.steps:
        choose(steps, [name], "resources.steps")
    steps = [replace(step, shards=project.pool.shards, resources=project.resources.of(step.name)) for step in steps]
    if not project.resources.one_pass:
        return steps
    return [replace(step, beside=_beside(step, steps[place + 1 :])) for place, step in enumerate(steps)]


def _beside(step: Step, later: Iterable[Step]) -> list[Step]:
    """Of these the steps that show the same pictures to their teachers where and how `step` does."""
    return [each for each in later if _is_column(step) and _is_column(each) and _seen(step) == _seen(each)]


def _is_column(step: Step) -> bool:
    return isinstance(step.stage, FeaturesStage)


def _seen(step: Step) -> tuple[Mapping[str, str], Resources]:
    return step.inputs, step.resources


def _data(project: Project) -> Iterator[Step]:
    part: Part = "build_data"
    source: dict[str, str] = {}
    match project.source:
        case ShapesConfig() as shapes:
            yield Step("source", part, SourceStage(shapes=shapes))
            source, pictures, coco = _same("source"), (), None
        case CocoSource() as coco:
            pictures = coco.images
    yield Step("images", part, PoolStage(images=pictures, **dict(project.pool)), source)
    yield Step("annotations", part, AnnotationsStage(coco=coco, compat=project.annotations.compat), _same("images") | source)
    yield from _lessons(project)
    yield from _passports(project)
    yield from _bases(project)
    yield from _features(project)
    for name, each in project.segments.items():
        stage = SegmentsStage(teacher=_teacher(project, each.teacher) if each.teacher else None, min_area=each.min_area)
        yield Step(f"segments/{name}", part, stage, _same("images", "annotations"), _weights(project, each.teacher))
    marks = PromptsStage.model_validate(project.prompts.model_dump(exclude={"segments"}))
    yield Step("prompts", part, marks, {"segments": f"segments/{project.prompts.segments}"})
    yield Step("samples", part, project.samples, _same("annotations", "prompts"))


def _lessons(project: Project) -> Iterator[Step]:
    for name, learning in project.teach.items():
        teacher = _teacher(project, name)
        assert isinstance(teacher, Mask2FormerConfig)
        stage = TeachStage(teacher=teacher, learning=learning)
        yield Step(_lesson(name), "build_data", stage, _same("images", "annotations"))


def _lesson(name: str) -> str:
    return f"teach/{name}"


def _teacher(project: Project, name: str) -> TeacherConfig:
    """The teacher; one that is taught finds its weights where the step that teaches it puts them."""
    teacher = project.teachers[name]
    return taught(teacher, Folder(project.workspace).child(_lesson(name))) if name in project.teach else teacher


def _weights(project: Project, name: str | None) -> dict[str, str]:
    """The weights of a teacher that is taught, by the role that they have for whoever opens it: he reads them from the folder
    that its config names, and what he makes is known by them."""
    return {"weights": _lesson(name)} if name in project.teach else {}


def _passports(project: Project) -> Iterator[Step]:
    for name in dict.fromkeys(column.teacher or own for own, column in project.columns.items()):
        yield Step(f"passport/{name}", "build_data", PassportStage(teacher=_teacher(project, name)), _weights(project, name))


def _bases(project: Project) -> Iterator[Step]:
    for name, column in project.columns.items():
        if components := codec_of(column.codec).components:
            own = column.teacher or name
            teacher, grid = _teacher(project, own), project.grid_of(name)
            stage = BasisStage(teacher=teacher, grid=grid, components=components, pictures=column.basis_pictures)
            yield Step(f"basis/{name}", "build_data", stage, _same("images") | _weights(project, own))


def _features(project: Project) -> Iterator[Step]:
    for name, column in project.columns.items():
        own = column.teacher or name
        teacher, grid = _teacher(project, own), project.grid_of(name)
        stage = FeaturesStage(name=name, teacher=teacher, grid=grid, codec=column.codec, seed=column.seed)
        whole, gates = _basis(project, name) | _weights(project, own), {"passport": f"passport/{own}"}
        yield Step(f"features/{name}", "build_data", stage, _same("images"), whole, gates=gates)


def _needs_basis(project: Project, name: str) -> bool:
    return codec_of(project.columns[name].codec).components is not None


def _basis(project: Project, name: str) -> dict[str, str]:
    """Of a column whose codec needs one, by the role that it has in making the column."""
    return {"basis": f"basis/{name}"} if _needs_basis(project, name) else {}


def _certificates(project: Project) -> Iterator[Step]:
    """The basis of a column is a gate of its certificate, which may be older than it, and says with which it measured."""
    for name, loss in project.loss.distillation.items():
        column = project.columns[name]
        stage = CertificateStage(
            name=name,
            teacher=_teacher(project, column.teacher or name),
            grid=project.grid_of(name),
            student=project.student,
            reads=loss.reads,
            seed=project.train.seed,
            ladder=_ladder(project, column.codec),
            pictures=project.certificate.pictures,
            basis_pictures=project.certificate.basis_pictures,
            places_seed=column.seed,
            base=project.base,
        )
        inputs = _same("images", "vocabulary") | _weights(project, column.teacher or name)
        yield Step(f"certificate/{name}", "train_student", stage, inputs, gates=_basis(project, name))


def _ladder(project: Project, codec: str) -> tuple[str, ...]:
    """The codecs that are measured. A column that takes one of the ladder has its certificate already."""
    return tuple(dict.fromkeys((*project.certificate.ladder, codec)))


def _training(project: Project) -> Iterator[Step]:
    part: Part = "train_student"
    student, taught = project.student, project.loss.distillation
    vocabulary = VocabularyStage(
        size=project.vocabulary.size, prompts=student.prompts, base=project.base, pictures=student.names_pictures
    )
    yield Step("vocabulary", part, vocabulary, {} if project.base else _same("samples"))
    yield from _certificates(project)
    stage = TrainStage(student=student, loss=project.loss, optim=project.optim, train=project.train, base=project.base)
    columns = [f"features/{name}" for name in taught] + [f"basis/{name}" for name in taught if _needs_basis(project, name)]
    gates = _same(*(f"certificate/{name}" for name in taught))
    yield Step("train", part, stage, _same("samples", "images", "vocabulary", *columns), gates=gates)


def _evaluation(project: Project) -> Iterator[Step]:
    for weights in WEIGHTS:
        stage = PredictStage(student=project.student, weights=weights, **dict(project.evaluation))
        whole = _same("train", "vocabulary")
        yield Step(f"predictions/{weights}", "evaluate_student", stage, _same("samples", "images"), whole)


def _same(*names: str) -> dict[str, str]:
    """Roles that are called as the steps that fill them."""
    return {name: name for name in names}


def artifacts(steps: Sequence[Step], workspace: Folder) -> dict[str, Artifact]:
    """The artifact of each step as it shall be, by name; `steps` come in order."""
    made: dict[str, Artifact] = {}
    for step in steps:
        table = step.stage.table()
        inputs = {role: made[name].fingerprint for role, name in step.roles.items()}
        identity = {
            "stage": type(step.stage).__name__,
            "version": step.stage.version,
            "table": _named(table),
            "shards": step.shards if table else 0,
            "config": step.stage.identity(),
            "outside": step.stage.outside(),
            "inputs": inputs,
        }
        made[step.name] = _known(Artifact(workspace.child(step.name), identity, table, step.shards if table else 0, step.name))
    return made


def _known(artifact: Artifact) -> Artifact:
    """The artifact, with what its record says of the things outside that are no longer there."""
    outside = artifact.identity["outside"]
    record = artifact.record() if ABSENT in outside.values() else None
    if record is None:
        return artifact
    told = {key: record.identity["outside"].get(key, ABSENT) if digest == ABSENT else digest for key, digest in outside.items()}
    return replace(artifact, identity={**artifact.identity, "outside": told})


def _named(table: Table | None) -> dict[str, Any] | None:
    return {"name": table.name, "version": table.version} if table else None


def choose(steps: Sequence[Step], names: Iterable[str], option: str) -> list[str]:
    """The steps that `names` name, in order; `features` names every step of the form `features/...`."""
    chosen: set[str] = set()
    for name in names:
        found = {step.name for step in steps if matches(step.name, name)}
        if not found:
            raise ConfigError(f"there is no step {name}{_near(steps, name)}", option, f"Steps: {', '.join(_names(steps))}")
        chosen |= found
    return [name for name in _names(steps) if name in chosen]


def matches(step: str, name: str) -> bool:
    return step == name or step.startswith(f"{name}/")


def _near(steps: Sequence[Step], name: str) -> str:
    groups = {step.split("/")[0] for step in _names(steps)}
    near = difflib.get_close_matches(name, {*_names(steps), *groups}, n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""


def _names(steps: Sequence[Step]) -> list[str]:
    return [step.name for step in steps]


def below(steps: Sequence[Step], names: Iterable[str]) -> set[str]:
    """The steps made from any of `names`, directly or through others."""
    found = set(names)
    for step in steps:
        if found & set(step.roles.values()):
            found.add(step.name)
    return found - set(names)


def above(steps: Sequence[Step], names: Iterable[str]) -> list[str]:
    """`names` and the steps that they are made from, directly or through others, in order."""
    found = set(names)
    for step in reversed(steps):
        if step.name in found:
            found |= set(step.roles.values())
    return [step.name for step in steps if step.name in found]
