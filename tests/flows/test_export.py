"""Model folders from the command line: what a run has made, and checkpoints of the release."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from flows.cli import app
from flows.config import Project
from flows.graph import artifacts, steps_of
from schemas.artifact import Artifact
from schemas.config import parse, read_toml
from schemas.storage import Folder
from stages.base import Resources
from student.model import PixelSail
from student.training import checkpoint
from student.vocabulary import Vocabulary
from student.weights import convert, export
from tests.flows.conftest import QUICKSTART
from tests.student.micro import TEXTS
from tests.student.stores import write_store
from tests.student.weights.qwen import write_qwen

CONFIG = """
extends = "{quickstart}"
name = "exported"
workspace = "{folder}/runs"
train.steps = 4
train.batch = 8
train.micro_batch = 4

[student]
layers = 2
hidden = 32
heads = 4
kv_heads = 2
head_dim = 8
ffn = 64
mask_dim = 12
mask_width = 16
rope_theta = 5000.0
norm_eps = 1e-5
recency = 0.0
prompts = 15
"""
BASE = '\n[base]\nweights = "micro/qwen"\nfolder = "{folder}/qwen"\n'
EVE = "\n[student.eve]\nchannels = 6\nside = 24\n" + "".join(
    f'[features.{teacher}]\ngrid = "native"\n' for teacher in ("sam2", "mask2former")
)
METRICS = {"trained": {"referring": {"ciou": 0.5, "queries": 3}}, "untrained": {"referring": {"ciou": 0.125}}}


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def write_config(folder: Path, base: bool = False, more: str = "") -> tuple[Path, dict[str, Artifact], Project]:
    path = folder / "own.toml"
    path.write_text((CONFIG + (BASE if base else "")).format(quickstart=QUICKSTART, folder=folder) + more)
    project = parse(Project, read_toml(path), str(path))
    return path, artifacts(steps_of(project), Folder(project.workspace)), project


def seal(artifact: Artifact, **extra) -> None:
    artifact.seal("2026-01-01T00:00:00+00:00", "2026-01-01T01:00:00+00:00", {}, **({"code": "1.2.3", "packages": {}} | extra))


def write_step(project: Project, made: dict[str, Artifact], step: int) -> PixelSail:
    """A vocabulary, and a checkpoint of a student that is drawn from the number of its step."""
    words = Vocabulary.train(TEXTS, 512, 15)
    if not made["vocabulary"].record():
        made["vocabulary"].folder.write("tokenizer.json", words.to_json().encode())
        seal(made["vocabulary"])
    student = PixelSail(project.student, words, torch.Generator().manual_seed(step))
    state = {"step": step, "samples": 8 * step, "history": [], "model": student.state_dict(), "training": {}}
    checkpoint.write(made["train"].folder, made["train"].identity, **state)
    return student


def same(first: PixelSail, second: PixelSail) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_finished_run_becomes_a_model_folder_with_a_card(tmp_path):
    config, made, project = write_config(tmp_path)
    write_step(project, made, 0)
    student = write_step(project, made, 4)
    summary = {"parameters": 12345, "corpus": 77, "shown": {"dropped": {"no picture": 2}}}
    seal(made["train"], packages={"torch": "2.13"}, summary=summary)
    made["report"].folder.write("metrics.json", json.dumps(METRICS).encode())
    seal(made["report"])
    done = call("export", config, "--to", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["files"][-1] == "config.json"
    assert told["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert same(export.read(tmp_path / "out")[0], student)
    text = (tmp_path / "out" / "README.md").read_text()
    for line in (
        "- Trained for 4 steps of 8 samples, 32 samples in all.",
        "- Begun from random weights of seed 0.",
        "- 12,345 parameters.",
        '- Dialogues: 77 to learn from, left out {"no picture": 2}.',
        "**the weights of sam2 are random (seed 0), not trained**",
        "| referring | ciou | 0.500 | 0.125 |",
        "- Sailyard 1.2.3; torch 2.13.",
        f"| train | `{made['train'].fingerprint}` |",
    ):
        assert line in text
    assert "it comes first, a side of at most 128 pixels" in text
    assert "not finished" not in text
    assert call("export", config, "--to", tmp_path / "out").exit_code == 2


@pytest.mark.parametrize(("step", "says"), [(0, "**Untrained**"), (3, "**Training is not finished**: step 3 of 4")])
def test_the_card_of_what_is_not_trained_says_so(tmp_path, step, says):
    config, made, project = write_config(tmp_path)
    student = write_step(project, made, step)
    done = call("export", config, "--to", "memory://unfinished/" + str(step))
    assert done.exit_code == 0, done.output
    text = Folder(f"memory://unfinished/{step}").read("README.md").decode()
    assert says in text
    assert "None: there is no report of these weights." in text
    assert len(student.state_dict()) > 0


def test_there_is_nothing_to_export_before_training_or_of_another_config(tmp_path):
    config, made, project = write_config(tmp_path)
    none = call("export", config, "--to", tmp_path / "out")
    assert (none.exit_code, "no whole checkpoint" in none.stderr) == (1, True)
    write_step(project, made, 4)
    other = call("export", config, "--to", tmp_path / "out", "--set", "train.steps=5")
    assert (other.exit_code, "steps: 4 -> 5" in other.stderr) == (1, True)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_the_release_becomes_a_model_folder(tmp_path):
    config, made, project = write_config(tmp_path)
    student = write_step(project, made, 4)
    state = {f"module.{name}": tensor for name, tensor in student.state_dict().items()}
    torch.save({"module": state | {"module.sam2_model.x": torch.zeros(1)}}, tmp_path / "iter_9.pth")
    done = call("import", config, "--from", tmp_path / "iter_9.pth", "--to", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert same(export.read(tmp_path / "out")[0], student)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "1 that only training needs were passed over" in text
    assert "Unknown: it was not trained here." in text
    assert call("import", config, "--from", tmp_path / "gone.pth", "--to", tmp_path / "two").exit_code == 1


def test_with_a_base_the_vocabulary_is_the_base_s(tmp_path):
    write_qwen(tmp_path / "qwen")
    config, made, project = write_config(tmp_path, base=True)
    (step,) = (step for step in steps_of(project) if step.name == "vocabulary")
    assert step.roles == {}
    step.stage.run({}, made["vocabulary"], Resources(), lambda *_: None)
    words = Vocabulary.from_json(made["vocabulary"].folder.read("tokenizer.json").decode())
    assert words.ids() == Vocabulary.from_qwen(tmp_path / "qwen", 15).ids()
    student = PixelSail(project.student, words, torch.Generator().manual_seed(1))
    convert.save(student, tmp_path / "theirs.safetensors")
    assert call("import", config, "--from", tmp_path / "theirs.safetensors", "--to", tmp_path / "out").exit_code == 0
    assert same(export.read(tmp_path / "out")[0], student)


@pytest.mark.parametrize("base", [False, True])
def test_a_student_of_evev2_comes_from_a_checkpoint_and_has_no_words_for_pictures(tmp_path, rng, base):
    write_qwen(tmp_path / "qwen")
    config, made, project = write_config(tmp_path, base=base, more=EVE)
    vocabulary = made["vocabulary"]
    assert vocabulary.identity["config"]["pictures"] is False
    (step,) = (step for step in steps_of(project) if step.name == "vocabulary")
    inputs = {} if base else {"samples": write_store(Folder(str(tmp_path / "store")), rng).samples}
    step.stage.run(inputs, vocabulary, Resources(), lambda *_: None)
    seal(vocabulary)
    words = Vocabulary.from_json(vocabulary.folder.read("tokenizer.json").decode())
    assert "<vpatch>" not in words.ids()
    student = PixelSail(project.student, words, torch.Generator().manual_seed(1))
    convert.save(student, tmp_path / "iter_9.pth")
    done = call("import", config, "--from", tmp_path / "iter_9.pth", "--to", tmp_path / "out")
    assert done.exit_code == 0, done.output
    again, known = export.read(tmp_path / "out")
    assert same(again, student)
    assert known.ids() == words.ids()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "it stands in the first question, brought to about 24² pixels" in text


def test_the_base_s_tokenizer_is_part_of_the_vocabulary_s_identity(tmp_path):
    write_qwen(tmp_path / "qwen")
    names = ("vocabulary", "images")
    before, images = (write_config(tmp_path, base=True)[1][name].fingerprint for name in names)
    (tmp_path / "qwen" / "model.safetensors").write_bytes(b"other weights")
    assert write_config(tmp_path, base=True)[1]["vocabulary"].fingerprint == before
    (tmp_path / "qwen" / "merges.txt").write_text("")
    after = {name: write_config(tmp_path, base=True)[1][name].fingerprint for name in names}
    assert (after["vocabulary"] != before, after["images"] == images) == (True, True)
    learned = write_config(tmp_path)[1]["vocabulary"].identity
    assert learned["config"] == {"size": 512, "prompts": 15}
