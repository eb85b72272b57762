"""What `sailyard predict` does: reads a picture and the marks on it, opens the student of a checkpoint, and asks it."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.answers import Answered, Asked, Writing
from flows.config import Project, ResourcesConfig
from flows.graph import artifacts, steps_of
from flows.pointing import drawn, loaded, numbers
from schemas.artifact import Artifact, file_digest
from schemas.config import Config, differences, execution, fingerprint, override, parse
from schemas.errors import BrokenArtifact, ConfigError, DataError, StaleArtifact
from schemas.pictures import decode
from schemas.regions import PromptKind, VisualPrompt
from schemas.storage import Folder
from stages.vocabulary import FILE
from student.config import StudentConfig

if TYPE_CHECKING:
    from student.ask import Student
    from student.model import PixelSail
    from student.training.checkpoint import Checkpoint
    from student.vocabulary import Vocabulary

STEP = "predictions/trained"  # whose resources are taken
FOLDERS = "a folder step-... of a run, or one that `sailyard export` wrote"
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


class Machine(Config):
    """All that is said beside a checkpoint that needs no project: where the student runs."""

    resources: ResourcesConfig = execution(ResourcesConfig())


def machine(checkpoint: str | None, sets: Sequence[str], workspace: str | None) -> Machine:
    """What stands in for the project where no CONFIG is named; then the checkpoint must be a folder."""
    if workspace:
        remedy = "Name the CONFIG too, or leave it out: the workspace is where the checkpoint lies."
        raise ConfigError("it is a project's, and there is no CONFIG", f"--workspace {workspace}", remedy)
    if checkpoint is None or checkpoint.isdigit():
        where = f"--checkpoint {checkpoint}" if checkpoint else "--checkpoint"
        raise ConfigError("there is no CONFIG that says of which run", where, f"Name it, or {FOLDERS}.")
    return parse(Machine, override({}, sets), "--set without a CONFIG")


@dataclass(frozen=True)
class Opened:
    """A student, and what is told of where it comes from."""

    student: "Student"
    checkpoint: Mapping[str, Any]

    def ask(self, asked: Asked, writing: Writing) -> Answered:
        answer = self.student.ask(asked.pixels_HWC, asked.text, asked.prompts, **asdict(writing))
        return Answered(asked, answer, writing, self.checkpoint)


def open_student(project: Project | Machine, checkpoint: str | None) -> Opened:
    """The student of `checkpoint`: the number of a step of the project's run, a folder `step-...` anywhere, or an exported
    folder; by default the newest of the run. It runs with the project's resources."""
    from student.ask import Student

    if checkpoint and Path(checkpoint, "config.json").is_file():
        model, vocabulary, told = _exported(checkpoint)
    elif isinstance(project, Project):
        model, vocabulary, told = _of_run(project, checkpoint)
    else:
        model, vocabulary, told = _by_itself(checkpoint or "")
    resources = project.resources.of(STEP)
    return Opened(Student.of(model, vocabulary, device=resources.device, threads=resources.threads), told)


def _exported(path: str) -> Loaded:
    from student.weights import export

    model, vocabulary = export.read(Path(path))
    folder = Folder(path)
    digests = {name: file_digest(folder, name) for name in folder.names()}
    return model, vocabulary, {"folder": path, "step": None, "fingerprint": fingerprint(digests)}


def _of_run(project: Project, checkpoint: str | None) -> Loaded:
    """A checkpoint of the project's sizes and vocabulary."""
    made = artifacts(steps_of(project), Folder(project.workspace))
    vocabulary = Artifact.sealed(made["vocabulary"].folder)
    found = _checkpoint(made["train"].folder, checkpoint)
    _check_kinship(_state(found)["identity"], made["train"].identity, vocabulary.fingerprint, found)
    return _loaded(found, project.student, vocabulary)


def _checkpoint(train: Folder, wanted: str | None) -> "Checkpoint":
    from student.training.checkpoint import at, latest, steps

    if wanted is None:
        found = latest(train)
    elif wanted.isdigit():
        found = at(train, int(wanted))
    else:
        found = _in_folder(wanted)
    if found is not None:
        return found
    if wanted is None:
        raise BrokenArtifact("no whole checkpoint", train.url, "Train first: `sailyard run CONFIG`.")
    there = f"the steps {', '.join(map(str, steps(train)))}" if steps(train) else "none"
    remedy = f"Name a step of the run, a folder step-... anywhere, or an exported folder. The run has {there}."
    raise ConfigError("no whole checkpoint", f"--checkpoint {wanted}", remedy)


def _in_folder(named: str) -> "Checkpoint | None":
    from student.training.checkpoint import at

    place = re.fullmatch(r"(?:(.*)/)?step-(\d+)", named.rstrip("/"))
    return at(Folder(place[1] or "."), int(place[2])) if place else None


def _by_itself(named: str) -> Loaded:
    """A checkpoint of any run: the sizes stand in its state, the vocabulary lies in its workspace."""
    found = _in_folder(named)
    if found is None:
        raise ConfigError("no whole checkpoint", f"--checkpoint {named}", f"Name {FOLDERS}, or the project's CONFIG.")
    identity = _state(found)["identity"]
    student = parse(StudentConfig, identity["config"]["student"], found.folder.url)
    return _loaded(found, student, _vocabulary_of(found, identity["inputs"]["vocabulary"]))


def _vocabulary_of(found: "Checkpoint", fingerprint: str) -> Artifact:
    """The vocabulary of this fingerprint, in the workspace two folders above the checkpoint."""
    place = found.folder.path() if found.folder.is_local else found.folder.url
    vocabulary = Artifact(Folder(place.rsplit("/", 2)[0]).child("vocabulary"), {})
    record, remedy = vocabulary.record(), "Name the CONFIG that it was trained with."
    if record is None:
        raise BrokenArtifact(f"there is no vocabulary for {found.folder.url}", vocabulary.where, remedy)
    if record.fingerprint != fingerprint:
        raise StaleArtifact(f"it is another vocabulary than that of {found.folder.url}", vocabulary.where, remedy)
    return vocabulary


def _loaded(found: "Checkpoint", student: StudentConfig, vocabulary: Artifact) -> Loaded:
    from student.vocabulary import Vocabulary

    words = Vocabulary.from_json(vocabulary.folder.read(FILE).decode())
    told = {"folder": found.folder.url, "step": found.step, "fingerprint": _state(found)["fingerprint"]}
    return found.student(student, words), words, told


def _state(found: "Checkpoint") -> dict[str, Any]:
    from student.training.checkpoint import STATE

    return json.loads(found.folder.read(STATE))


def _check_kinship(identity: Mapping[str, Any], today: Mapping[str, Any], vocabulary: str, found: "Checkpoint") -> None:
    """Refuse a checkpoint of another student, or one that counts words otherwise: its answers would be noise."""
    changed = differences(identity["config"]["student"], today["config"]["student"], "student")
    if identity["inputs"]["vocabulary"] != vocabulary:
        changed.append("its vocabulary is another one")
    if changed:
        raise StaleArtifact("; ".join(changed), found.folder.url, "Ask with the config that it was trained with.")


def ask(project: Project | Machine, checkpoint: str | None, question: Question, writing: Writing) -> Answered:
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
