"""Project: the whole TOML file, composed of the configs of the stages, each declared beside what it configures."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from schemas.codecs import codec_of
from schemas.config import Compat, Config, execution, later, parse
from schemas.features import CodecName
from schemas.grids import Grid, PatchGrid
from stages.base import Resources
from stages.certificate import LADDER
from stages.forecast import Prices
from stages.prompts import PromptsStage
from stages.report.stage import ReportStage
from stages.samples import SamplesStage
from stages.sources.config import CocoSource
from stages.sources.shapes.config import ShapesConfig
from stages.turns import FORMS
from student.config import BaseConfig, LossConfig, OptimConfig, StudentConfig
from student.train_config import TrainConfig
from teachers.config import TeacherConfig
from teachers.mask2former.config import Learning, Mask2FormerConfig

# Names of tables in the TOML become folders, and parts of the student's weights.
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
Source = Annotated[ShapesConfig | CocoSource, Field(discriminator="kind")]


class PoolConfig(Config):
    """How the pictures are laid out; every table made from them has as many shards."""

    shards: int = Field(default=16, ge=1)
    max_pixels: int = Field(default=1 << 26, ge=1)


class ColumnConfig(Config):
    """What is stored of a teacher, by default of the one that is called as the column. On grid "student" a map lies on the
    cells of the student's tensor that the loss holds against it, on "native" as the teacher makes it. A basis of principal
    components is fitted on `basis_pictures` of the pool."""

    teacher: str | None = None
    grid: Literal["student", "native"] | tuple[int, int] = "student"
    codec: CodecName = "bf16"
    seed: int = 0
    basis_pictures: int = Field(default=64, ge=1)


class CertificateConfig(Config):
    """Which codecs are measured beside a column's own, on how many pictures, their bases fitted on how many others."""

    ladder: tuple[CodecName, ...] = LADDER
    pictures: int = Field(default=4, ge=1)
    basis_pictures: int = Field(default=16, ge=1)


class SegmentsConfig(Config):
    """Where regions come from: a teacher of the project, by its name, or without one the annotated objects."""

    teacher: str | None = None
    min_area: int = Field(default=16, ge=0)


class AnnotationsConfig(Config):
    """How annotation files are read: `AnnotationsStage` says what "paper" means."""

    compat: Compat = later("correct")


class PromptsConfig(PromptsStage):
    """What is pointed at, one of the project's `segments`, and how."""

    segments: str = "ground_truth"


class VocabularyConfig(Config):
    """`size` counts the special tokens; the student says how many of those stand for prompts. With a base the vocabulary is
    the base's, and `size` means nothing."""

    size: int = Field(default=512, ge=300)


class EvaluationConfig(Config):
    max_new_tokens: int = Field(default=512, ge=1)


class ResourcesConfig(Resources):
    """The resources of every step, and under `steps` what differs for one step, or for a group such as `features`. With
    `one_pass` the columns of features whose resources are the same are made together: a worker holds all of their teachers, and
    decodes each picture once."""

    one_pass: bool = False
    steps: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _steps_are_resources(self) -> Self:
        for name in self.steps:
            self.of(name)
        return self

    def of(self, step: str) -> Resources:
        """What `step` runs with: the general, then the group's, then its own."""
        fields = self.model_dump(exclude={"one_pass", "steps"})
        for name in sorted(self.steps, key=len):
            if step == name or step.startswith(f"{name}/"):
                fields |= self.steps[name]
        return parse(Resources, fields, f"resources.steps.{step}")


class Project(Config):
    """Pictures, teachers, a student and how it is taught. `retries` is how often Prefect tries a failed step again, after
    `retry_delay` seconds."""

    name: str
    workspace: str = execution()
    source: Source
    pool: PoolConfig = PoolConfig()
    annotations: AnnotationsConfig = AnnotationsConfig()
    teachers: dict[Name, TeacherConfig] = {}
    teach: dict[Name, Learning] = {}
    features: dict[Name, ColumnConfig] = {}
    certificate: CertificateConfig = CertificateConfig()
    segments: dict[Name, SegmentsConfig] = {"ground_truth": SegmentsConfig()}
    prompts: PromptsConfig = PromptsConfig()
    samples: SamplesStage = SamplesStage()
    vocabulary: VocabularyConfig = VocabularyConfig()
    base: BaseConfig | None = None
    student: StudentConfig = StudentConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportStage = ReportStage()
    resources: ResourcesConfig = execution(ResourcesConfig())
    prices: Prices = execution(Prices())
    retries: int = execution(0, ge=0)
    retry_delay: float = execution(10.0, ge=0)

    @model_validator(mode="after")
    def _names_lead_somewhere(self) -> Self:
        wanted = [(f"segments.{name}.teacher", each.teacher, self.teachers) for name, each in self.segments.items()]
        wanted += [("prompts.segments", self.prompts.segments, self.segments)]
        wanted += [
            (f"features.{name}.teacher", column.teacher or name, self.teachers) for name, column in self.features.items()
        ]
        wanted += [("loss.distillation", name, self.teachers) for name in self.loss.distillation if name not in self.features]
        for at, name, known in wanted:
            if name and name not in known:
                raise ValueError(f"{at} names {name!r}, there is only {', '.join(known) or 'none'}")
        return self

    @model_validator(mode="after")
    def _who_is_taught_has_lessons(self) -> Self:
        taught = {name for name, teacher in self.teachers.items() if teacher.is_taught}
        for name in sorted(taught ^ self.teach.keys()):
            what = f"teachers.{name} has weights = 'taught'" if name in taught else f"there is [teach.{name}]"
            raise ValueError(f"{what}: it takes both, a teacher with weights = 'taught' and [teach.{name}] that says how")
        for name in sorted(taught):
            if not isinstance(self.teachers[name], Mask2FormerConfig):
                raise ValueError(f"teachers.{name}: only mask2former can be taught, not {self.teachers[name].kind}")
        return self

    @model_validator(mode="after")
    def _columns_have_grids(self) -> Self:
        for name, column in self.features.items():
            components = codec_of(column.codec).components or 0
            if components > self.teachers[column.teacher or name].feature_channels:
                raise ValueError(f"features.{name}: {column.codec} is more than the teacher has channels")
            if column.codec.startswith("points") and column.grid != "student":
                raise ValueError(f"features.{name}: {column.codec} are places of the student's grid, set grid = 'student'")
            if column.grid == "student" and name not in self.loss.distillation:
                raise ValueError(
                    f"features.{name} has grid = 'student', but no loss.distillation.{name} says which cells those are"
                )
        for name in self.columns:
            if fault := self.student.fault_of(self.grid_of(name)):
                raise ValueError(f"features.{name}: {fault}")
        return self

    @property
    def columns(self) -> dict[str, ColumnConfig]:
        """What is stored: what the file names, and what the losses need."""
        return {name: self.features.get(name, ColumnConfig()) for name in (*self.features, *self.loss.distillation)}

    def grid_of(self, name: str) -> Grid:
        """The grid of a column, "student" spelt out."""
        grid, student = self.columns[name].grid, self.student
        if grid != "student":
            return grid
        cells = 1 if self.loss.distillation[name].reads == "patches" else student.patch // student.mask_stride
        return PatchGrid(patch=student.patch, max_side=student.max_side, cells=cells)

    @model_validator(mode="after")
    def _dialogues_can_be_written(self) -> Self:
        """Statements speak of annotated objects: a teacher's proposals have numbers of their own."""
        if self.segments[self.prompts.segments].teacher:
            raise ValueError(f"prompts.segments = {self.prompts.segments!r} are proposals, dialogues need annotated objects")
        undrawn = set(self.samples.prompt_kinds) - set(self.prompts.kinds)
        if undrawn or "mask" not in self.prompts.kinds:
            raise ValueError(f"prompts.kinds lacks {', '.join(undrawn) or 'mask, which evaluation points with'}")
        if self.samples.prompts > self.student.prompts:
            raise ValueError(f"samples.prompts = {self.samples.prompts} exceeds student.prompts = {self.student.prompts}")
        return self

    @model_validator(mode="after")
    def _data_sets_are_there(self) -> Self:
        """What is said of single data sets is said of such as the source has. Those of rendered scenes are not known before."""
        if not isinstance(self.source, CocoSource):
            return self
        tasks = {file.label: file.tasks for file in self.source.files() if file.tasks}
        for name, form in self.samples.forms.items():
            label = name if name in tasks else name.rpartition("/")[0]
            if label not in tasks:
                raise ValueError(f"samples.forms names {name!r}, there is only {', '.join(tasks) or 'none'}")
            if not set(tasks[label]) & set(FORMS[form]):
                raise ValueError(f"samples.forms.{name} = {form!r} is for {' and '.join(FORMS[form])}, not {tasks[label][0]}")
        parts = self._parts(tasks)
        for name in (*self.train.mixture.repeats, *self.train.mixture.weights):
            if parts and not any(_stands_for(name, part) for part in parts):
                raise ValueError(f"train.mixture names {name!r}, there is only {', '.join(sorted(parts))}")
        return self

    def _parts(self, tasks: Mapping[str, Sequence[str]]) -> set[str]:
        """Of what training can consist: tasks, and data sets of theirs where dialogues are written apart by data set."""
        found = {(task, label) for label, of in tasks.items() for task in of if task in self.samples.tasks}
        return {f"{task}/{label}" if self.samples.by_source else task for task, label in found}


def _stands_for(name: str, part: str) -> bool:
    """Whether what the mixture names is the part, of which it is one, or a split of the data set that the part is."""
    return f"{part}/".startswith(f"{name}/") or ("/" in part and name.startswith(f"{part}/"))
