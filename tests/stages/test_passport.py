"""A teacher's passport as an artifact: what is refused, what is only noted."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas.artifact import Artifact, verify
from schemas.errors import BrokenArtifact, StaleArtifact
from schemas.storage import Folder
from stages.base import Resources
from stages.passport import FILE, PassportStage, read, require_same
from teachers.build import build_teacher
from teachers.config import TeacherConfig
from teachers.passport import network
from teachers.radio.config import RadioConfig
from teachers.radio.network import load
from teachers.sam2.config import Sam2Config

LOCAL = Resources(executor="local")
CONFIG = Sam2Config()


def made(folder: Folder, config: TeacherConfig = CONFIG, resources: Resources = LOCAL) -> Artifact:
    stage = PassportStage(teacher=config)
    output = Artifact(folder, {"stage": stage.identity()}, name=f"passport/{config.kind}")
    told: list[tuple[int, int, str]] = []
    outcome = stage.run({}, output, resources, lambda done, total, unit, note="": told.append((done, total, unit)))
    output.seal("now", "then", {}, code="", packages={}, summary=outcome.summary, failures=outcome.failures)
    assert told == [(1, 1, "teachers")] and outcome.failures == []
    return output


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return made(Folder(str(tmp_path_factory.mktemp("passport"))))


@pytest.fixture
def sealed(original: Artifact, tmp_path: Path) -> Artifact:
    """A copy that a test may spoil."""
    shutil.copytree(original.folder.path(), tmp_path / "copy")
    return replace(original, folder=Folder(str(tmp_path / "copy")))


def test_a_passport_is_one_plain_file_with_a_record(store):
    output = made(store)
    assert verify(store) == []
    record = output.record()
    assert [part.name for part in record.parts] == [FILE]
    assert record.summary["digest"] == read(output).digest
    assert PassportStage(teacher=CONFIG).table() is None


def test_the_bytes_do_not_depend_on_the_hour(tmp_path):
    one, two = (made(Folder(str(tmp_path / name))) for name in "ab")
    assert one.folder.read(FILE) == two.folder.read(FILE)


def test_the_same_teacher_passes(sealed):
    assert require_same(sealed, CONFIG, LOCAL) == []
    assert require_same(sealed, CONFIG, LOCAL.model_copy(update={"threads": 2})) == []
    assert require_same(sealed, CONFIG, LOCAL, build_teacher(CONFIG)) == []


def test_another_network_is_refused_by_what_moved(sealed):
    with pytest.raises(StaleArtifact) as caught:
        require_same(sealed, Sam2Config(seed=1), LOCAL)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    assert "the teacher's features moved (weights: digest " in line
    assert "features: mean of channel" in line and "more statistics" in line
    assert line.startswith(sealed.where) and "run with --rebuild passport/sam2 and --rebuild of the features" in line


def test_the_teacher_that_was_handed_in_is_the_one_that_is_asked(sealed):
    teacher = build_teacher(CONFIG)
    state = network(teacher).state_dict()
    bias = next(value for name, value in state.items() if name.endswith("neck.convs.0.bias"))
    bias[3] += 1e-5
    (note,) = require_same(sealed, CONFIG, LOCAL, teacher)
    assert note.startswith("weights: digest ")
    bias[3] += 0.5
    with pytest.raises(StaleArtifact, match="mean of channel 3 on picture 1"):
        require_same(sealed, CONFIG, LOCAL, teacher)


def test_a_library_that_moves_nothing_is_a_note(sealed):
    content = json.loads(sealed.folder.read(FILE))
    now, content["versions"]["transformers"] = content["versions"]["transformers"], "4.0.0"
    sealed.folder.write(FILE, json.dumps(content).encode())
    assert require_same(sealed, CONFIG, LOCAL) == [f"transformers 4.0.0 -> {now}"]


def test_other_weights_in_the_same_folder_are_refused(tmp_path):
    folder = tmp_path / "weights"
    load(RadioConfig(seed=3)).save_pretrained(folder)
    config = RadioConfig(weights="somebody/radio", folder=str(folder), channels=32, shortest_edge=128, dtype="float32")
    output = made(Folder(str(tmp_path / "passport")), config)
    before, notes = PassportStage(teacher=config).outside(), PassportStage(teacher=config).notes()
    assert require_same(output, config, LOCAL) == [] and notes == []
    file = folder / "model.safetensors"
    name = "radio_model.model.blocks.1.mlp.fc2.bias"
    save_file(load_file(file) | {name: torch.full((32,), 0.2)}, file)
    assert PassportStage(teacher=config).outside() != before
    with pytest.raises(StaleArtifact, match=r"weights: digest .*features: mean of channel .*--rebuild passport/radio"):
        require_same(output, config, LOCAL)


def test_random_weights_are_noted():
    (note,) = PassportStage(teacher=CONFIG).notes()
    assert "sam2" in note and "random" in note
    assert PassportStage(teacher=CONFIG).outside() == {}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "Invalid JSON"),
        (lambda data: b"", "Invalid JSON"),
        (lambda data: data.replace(b'"digest"', b'"digests"'), "digest Field required"),
        (lambda data: data.replace(b'"shape":[32,', b'"shape":["no",'), r"probes\.0\.shape\.0 Input should be a valid integer"),
        (lambda data: b"\xff" + data, "Invalid JSON"),
    ],
    ids=["cut", "empty", "renamed", "no number", "no text"],
)
def test_a_damaged_passport_is_one_clear_line(sealed, damage, reason):
    sealed.folder.write(FILE, damage(sealed.folder.read(FILE)))
    with pytest.raises(BrokenArtifact, match=rf"passport\.json: the teacher's passport cannot be read: {reason}") as caught:
        require_same(sealed, CONFIG, LOCAL)
    assert "\n" not in str(caught.value) and "Run with --rebuild passport/sam2." in str(caught.value)


def test_a_missing_passport_is_named(tmp_path):
    with pytest.raises(BrokenArtifact, match="passport is missing"):
        require_same(Artifact(Folder(str(tmp_path)), {}, name="passport/sam2"), CONFIG, LOCAL)
