"""What `sailyard export` and `sailyard import` do: a run's student, or a checkpoint of the release, as a model folder in the
layout of Hugging Face, with a model card that says what is known of it and what is not."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flows.config import Project
from flows.exhibit import lineage
from flows.graph import artifacts, steps_of
from flows.results import metrics_of, score_rows
from flows.words import size
from schemas.artifact import Artifact, Record, file_digest
from schemas.errors import BrokenArtifact, DataError, StaleArtifact
from schemas.storage import Folder
from stages.vocabulary import FILE
from stages.weights import random_weights_note

if TYPE_CHECKING:
    from student.training.checkpoint import Checkpoint
    from student.vocabulary import Vocabulary

LIMITS = """\
- There is no class for it in transformers: `student.weights.export.read(folder)` of Sailyard opens it. The tokenizer is an
  ordinary one: `transformers.AutoTokenizer.from_pretrained(folder)`.
- One picture a dialogue; it {place}, {size}.
- It points by `[SEG]`, one mask each, at a stride of {stride} pixels; at most {prompts} regions can be marked in a question.
- It was held against the evaluation pictures of its own sources alone, if at all. Nothing was looked at for bias or misuse."""


@dataclass(frozen=True)
class Exported:
    """Where a model folder was written, the names of its files in that order, and their bytes all together."""

    folder: str
    files: tuple[str, ...]
    bytes: int

    def as_text(self) -> str:
        return f"{self.folder}: {len(self.files)} files, {size(self.bytes)}"


def export(project: Project, to: str) -> Exported:
    """The student of the newest checkpoint of the project's run, as `to`."""
    from student.training import checkpoint
    from student.weights import export

    made = artifacts(steps_of(project), Folder(project.workspace))
    train = made["train"]
    found = checkpoint.latest(train.folder, train.identity)
    if found is None:
        raise BrokenArtifact("no whole checkpoint", train.where, "Train first: `sailyard run CONFIG`.")
    words = _vocabulary(made["vocabulary"])
    student = found.student(project.student, words)
    return _told(to, export.write(Folder(to), student, words, card(project, made, found)))


def bring_in(project: Project, source: str, to: str) -> Exported:
    """A checkpoint of the release, a file or a folder, as `to`; sizes and vocabulary are the project's."""
    from student.model import PixelSail
    from student.vocabulary import Vocabulary
    from student.weights import base, convert, export

    if project.base:
        words = Vocabulary.from_qwen(base.locate(project.base), project.student.prompts, project.student.names_pictures)
    else:
        words = _vocabulary(artifacts(steps_of(project), Folder(project.workspace))["vocabulary"])
    if not Path(source).exists():
        raise DataError("no such checkpoint", source, "Check the path.")
    student = PixelSail(project.student, words, None)
    loaded = convert.load(student, Path(source))
    told = f"{loaded.tensors} tensors were taken, {loaded.ignored} that only training needs were passed over."
    return _told(to, export.write(Folder(to), student, words, _foreign_card(project, Path(source), told)))


def _vocabulary(artifact: Artifact) -> "Vocabulary":
    """The complete vocabulary of today's config."""
    from student.vocabulary import Vocabulary

    if Artifact.sealed(artifact.folder).fingerprint != artifact.fingerprint:
        raise StaleArtifact("the vocabulary is of another config", artifact.where, "Run `sailyard plan CONFIG` to see in what.")
    return Vocabulary.from_json(artifact.folder.read(FILE).decode())


def _told(to: str, names: list[str]) -> Exported:
    sizes = Folder(to).names()
    return Exported(to, tuple(names), sum(sizes[name] for name in names))


def card(project: Project, made: Mapping[str, Artifact], found: "Checkpoint") -> str:
    """The model card, in Markdown, from the records of the run."""
    train = made["train"]
    record, base = train.record(), _base(train)
    return _page(
        _front(base),
        f"# {project.name}",
        "A [Pixel-SAIL](https://arxiv.org/abs/2504.10465) student, made by Sailyard: one transformer that reads pixels and "
        "text, answers in text, and points with masks.",
        _list("Weights", _weights(project, found, record, base)),
        _list("Trained on", _training(project, made, record)),
        "\n".join(["## Scores", "", *_scores(project, made, found)]),
        _list("Versions", _versions(train, record)),
        "\n".join(["## Lineage", "", *_lineage(train, record)]),
        f"## Limitations\n\n{_limits(project)}",
    )


def _page(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def _list(title: str, lines: Iterable[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {line}" for line in lines)])


def _base(train: Artifact) -> str | None:
    """The name of the model that training began from, if any."""
    base = train.identity["config"].get("base")
    return base["weights"] if base else None


def _front(base: str | None) -> str:
    named = [f"base_model: {json.dumps(base)}"] if base else []
    return "\n".join(["---", "library_name: sailyard", "tags: [pixel-sail, image-segmentation]", *named, "---"])


def _weights(project: Project, found: "Checkpoint", record: Record | None, base: str | None) -> Iterator[str]:
    steps = project.train.steps
    if found.step == 0:
        yield "**Untrained**: these are the weights that training starts from."
    elif found.step < steps or record is None:
        yield f"**Training is not finished**: step {found.step} of {steps}, after {found.samples} samples."
    else:
        yield f"Trained for {found.step} steps of {project.train.batch} samples, {found.samples} samples in all."
    yield f"Begun from {base or f'random weights of seed {project.train.seed}'}."
    if record and "parameters" in record.summary:
        yield f"{record.summary['parameters']:,} parameters."


def _training(project: Project, made: Mapping[str, Artifact], record: Record | None) -> Iterator[str]:
    images = made["images"].record()
    yield f"Pictures: source `{project.source.kind}`" + (f", {images.rows} pictures" if images else "") + "."
    if record and "corpus" in record.summary:
        left = record.summary.get("shown", {}).get("dropped") or {}
        yield f"Dialogues: {record.summary['corpus']} to learn from" + (f", left out {json.dumps(left)}" if left else "") + "."
    if not project.loss.distillation:
        yield "No teacher."
    for name, loss in project.loss.distillation.items():
        teacher = project.teachers[project.columns[name].teacher or name]
        notes = "; ".join(random_weights_note(teacher))
        yield (
            f"Teacher `{name}`: {teacher.kind}, {teacher.weights}, weight {loss.weight}"
            + (f". **{notes}**" if notes else "")
            + "."
        )


def _scores(project: Project, made: Mapping[str, Artifact], found: "Checkpoint") -> Iterator[str]:
    """Those of the report, which speak of the end of the run alone."""
    rows = score_rows(metrics_of(made)) if found.step == project.train.steps else []
    if not rows:
        yield "None: there is no report of these weights."
        return
    yield "On the run's own evaluation pictures, beside the same student untrained."
    yield ""
    yield from ("| task | metric | trained | untrained |", "|---|---|---|---|")
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _versions(train: Artifact, record: Record | None) -> Iterator[str]:
    yield f"Run `{train.fingerprint}`."
    if record is None:
        yield "Code and packages are recorded when training is finished."
        return
    yield f"Sailyard {record.code}; {', '.join(f'{name} {version}' for name, version in sorted(record.packages.items()))}."
    yield f"Trained from {record.started} to {record.ended}."


def _lineage(train: Artifact, record: Record | None) -> Iterator[str]:
    if record is None:
        yield "Recorded when training is finished."
        return
    yield from ("| artifact | fingerprint | made from |", "|---|---|---|")
    for each in lineage(train):
        yield f"| {each['name']} | `{each['fingerprint']}` | {', '.join(each['inputs'])} |"
    yield f"| train | `{record.fingerprint}` | {', '.join(made['name'] for made in record.inputs.values())} |"


def _limits(project: Project) -> str:
    student = project.student
    place, size = "comes first", f"a side of at most {student.max_side} pixels"
    if student.eve:
        place, size = "stands in the first question", f"brought to about {student.eve.side}² pixels"
    return LIMITS.format(place=place, size=size, stride=student.mask_stride, prompts=student.prompts)


def _foreign_card(project: Project, source: Path, told: str) -> str:
    digest = f" (SHA-256 `{file_digest(Folder(str(source.parent)), source.name)}`)" if source.is_file() else ""
    return _page(
        _front(None),
        f"# {source.stem}",
        f"A Pixel-SAIL student, converted from `{source.name}`{digest}. {told}",
        "## Trained on\n\nUnknown: it was not trained here.",
        "## Scores\n\nNone: it was not evaluated here.",
        f"## Limitations\n\n{_limits(project)}",
    )
