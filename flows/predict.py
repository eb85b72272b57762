"""What `sailyard predict` does: reads a picture and the marks on it, opens the student of a checkpoint, and asks it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.answers import Answered, Asked, Writing
from flows.config import Project
from flows.graph import artifacts, steps_of
from flows.pointing import drawn, loaded, numbers
from schemas.artifact import Artifact, file_digest
from schemas.config import differences, fingerprint
from schemas.errors import BrokenArtifact, ConfigError, DataError, StaleArtifact
from schemas.pictures import decode
from schemas.regions import PromptKind, VisualPrompt
from schemas.storage import Folder
from stages.vocabulary import FILE

if TYPE_CHECKING:
    from student.ask import Student
    from student.checkpoint import Checkpoint
    from student.model import PixelSail
    from student.vocabulary import Vocabulary

STEP = "predictions/trained"  # whose resources are taken
Loaded = tuple["PixelSail", "Vocabulary", dict[str, Any]]  # and what is told of where it comes from


@dataclass(frozen=True)
class Question:
    """The command line. Marks are numbered in this order: points, boxes, scribbles, masks, each in the order given."""

    image: str
    text: str
    points: Sequence[str] = ()
    boxes: Sequence[str] = ()
    scribbles: Sequence[str] = ()
    masks: Sequence[str] = ()


def check(question: Question, serve: bool) -> None:
    """Refuse a command line without its picture, or with one beside the page, which asks for it."""
    if serve and question != Question("", ""):
        raise ConfigError("the page asks for picture, text and marks itself", "--serve", "Leave them out.")
    if not serve and not question.image:
        raise ConfigError("there is no picture", "--image", "Name one, or open the page with --serve.")


@dataclass(frozen=True)
class Opened:
    """A student, and what is told of where it comes from."""

    student: "Student"
    checkpoint: Mapping[str, Any]

    def ask(self, asked: Asked, writing: Writing) -> Answered:
        answer = self.student.ask(asked.pixels_HWC, asked.text, asked.prompts, **asdict(writing))
        return Answered(asked, answer, writing, self.checkpoint)


def open_student(project: Project, checkpoint: str | None) -> Opened:
    """The student of `checkpoint`: the number of a step of the project's run, a folder `step-...` anywhere, or an exported
    folder; by default the newest of the run. It runs with the project's resources."""
    from student.ask import Student

    exported = checkpoint if checkpoint and Path(checkpoint, "config.json").is_file() else None
    model, vocabulary, told = _exported(exported) if exported else _of_run(project, checkpoint)
    resources = project.resources.of(STEP)
    return Opened(Student.of(model, vocabulary, device=resources.device, threads=resources.threads), told)


def _exported(path: str) -> Loaded:
    from student import export

    model, vocabulary = export.read(Path(path))
    folder = Folder(path)
    digests = {name: file_digest(folder, name) for name in folder.names()}
    return model, vocabulary, {"folder": path, "step": None, "fingerprint": fingerprint(digests)}


def _of_run(project: Project, checkpoint: str | None) -> Loaded:
    """A checkpoint of the project's sizes and vocabulary."""
    from student.checkpoint import STATE
    from student.model import PixelSail
    from student.vocabulary import Vocabulary

    made = artifacts(steps_of(project), Folder(project.workspace))
    vocabulary = Artifact.sealed(made["vocabulary"].folder)
    found = _checkpoint(made["train"].folder, checkpoint)
    state = json.loads(found.folder.read(STATE))
    _check_kinship(state["identity"], made["train"].identity, vocabulary.fingerprint, found)
    words = Vocabulary.from_json(vocabulary.folder.read(FILE).decode())
    model = PixelSail(project.student, words, None)
    model.load_state_dict(found.model())
    return model, words, {"folder": found.folder.url, "step": found.step, "fingerprint": state["fingerprint"]}


def _checkpoint(train: Folder, wanted: str | None) -> "Checkpoint":
    from student.checkpoint import at, latest, steps

    if wanted is None:
        found = latest(train)
    elif wanted.isdigit():
        found = at(train, int(wanted))
    else:
        place = re.fullmatch(r"(?:(.*)/)?step-(\d+)", wanted.rstrip("/"))
        found = at(Folder(place[1] or "."), int(place[2])) if place else None
    if found is not None:
        return found
    if wanted is None:
        raise BrokenArtifact("no whole checkpoint", train.url, "Train first: `sailyard run CONFIG`.")
    there = f"the steps {', '.join(map(str, steps(train)))}" if steps(train) else "none"
    remedy = f"Name a step of the run, a folder step-... anywhere, or an exported folder. The run has {there}."
    raise ConfigError("no whole checkpoint", f"--checkpoint {wanted}", remedy)


def _check_kinship(identity: Mapping[str, Any], today: Mapping[str, Any], vocabulary: str, found: "Checkpoint") -> None:
    """Refuse a checkpoint of another student, or one that counts words otherwise: its answers would be noise."""
    changed = differences(identity["config"]["student"], today["config"]["student"], "student")
    if identity["inputs"]["vocabulary"] != vocabulary:
        changed.append("its vocabulary is another one")
    if changed:
        raise StaleArtifact("; ".join(changed), found.folder.url, "Ask with the config that it was trained with.")


def ask(project: Project, checkpoint: str | None, question: Question, writing: Writing) -> Answered:
    """What the student of `checkpoint` answers; it is opened once picture and marks are known to be sound."""
    pixels_HWC = read_picture(question.image)
    prompts = list(_prompts(question, pixels_HWC.shape[:2]))
    asked = Asked(question.image, pixels_HWC, question.text, prompts)
    return open_student(project, checkpoint).ask(asked, writing)


def read_picture(path: str) -> np.ndarray:
    """HWC uint8 RGB, upright."""
    data = _read(path, "picture")
    try:
        return decode(data)
    except DataError as error:
        raise DataError(error.what, path, "Give a picture, such as a JPEG or a PNG.") from None


def _prompts(question: Question, size: tuple[int, int]) -> Iterator[VisualPrompt]:
    by_numbers: list[tuple[PromptKind, str]] = [
        *(("point", text) for text in question.points),
        *(("box", text) for text in question.boxes),
        *(("scribble", text) for text in question.scribbles),
    ]
    for number, (kind, text) in enumerate(by_numbers):
        yield drawn(number, kind, numbers(f"--{kind}", text), size)
    for number, path in enumerate(question.masks, start=len(by_numbers)):
        yield loaded(number, _read(path, "mask"), path, size)


def _read(path: str, what: str) -> bytes:
    """A file on a disk or at any fsspec URL."""
    parent, slash, name = path.rpartition("/")
    folder = Folder(parent + slash or ".")
    try:
        return folder.read(name)
    except FileNotFoundError:
        raise ConfigError(f"there is no such {what}", path, "Check the path.") from None
    except OSError as error:
        raise DataError(f"the {what} cannot be read: {error}", path, "Give the path of a file.") from None
