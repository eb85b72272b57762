"""`sailyard predict`: marks go in by their pixels, words and masks come out, and what means nothing is told so in a line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from pycocotools import mask as coco
from typer.testing import CliRunner

from flows.answers import readable
from flows.cli import app
from flows.config import Project
from flows.predict import open_student
from schemas.artifact import Artifact
from schemas.config import parse, read_toml
from schemas.regions import box_mask, intersection_over_union
from schemas.storage import Folder
from student.weights import export
from tests.flows.asked import HEIGHT, POINT, QUESTION, SAYS, SQUARE, STEPS, WIDTH, write_project

HERE = f"{POINT[0]},{POINT[1]}"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("asked"))


@pytest.fixture(autouse=True)
def _threads():
    """The command sets torch's threads; what comes after finds them as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exported(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = parse(Project, read_toml(project), str(project))
    opened, folder = open_student(config, None).student, tmp_path_factory.mktemp("exported")
    export.write(Folder(str(folder)), opened.model, opened.vocabulary, "")
    return folder


def predict(project: Path, *args: str | Path, image: str | Path = "scene.png", text: str = QUESTION) -> Result:
    words = ["predict", project, "--image", project.parent / image, "--text", text, "--out", project.parent / "answers"]
    return CliRunner().invoke(app, [str(word) for word in (*words, "--max-new-tokens", "16", *args)])


def answer(project: Path, *args: str | Path, **over) -> dict:
    done = predict(project, "--json", *args, **over)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def marked(prompt: dict) -> np.ndarray:
    return coco.decode(prompt["rle"]).astype(bool)


def test_an_answer_is_printed_and_kept(project: Path):
    done = predict(project, "--point", HERE)
    assert done.exit_code == 0, done.output
    words, mask, *paths = done.stdout.splitlines()
    assert words == SAYS
    kept = json.loads(Path(paths[1]).read_text())
    assert (kept["text"], kept["checkpoint"]["step"]) == (SAYS, STEPS)
    (found,) = kept["masks"]
    inside, either = intersection_over_union(coco.decode(found["rle"]).astype(bool), SQUARE)
    assert inside / either > 0.9
    share = found["area"] / (WIDTH * HEIGHT)
    assert mask == f"mask 0: {found['area']} pixels ({share:.1%}), box 4,8,28,32, score {found['score']:.2f}"
    assert found["score"] > 0.9


def test_the_picture_shows_the_mask_and_the_mark(project: Path):
    predict(project, "--point", HERE)
    scene = Image.open(project.parent / "scene.png")
    drawn = Image.open(project.parent / "answers" / "scene.png")
    plain = np.asarray(scene.resize(drawn.size, Image.Resampling.BICUBIC)).astype(int)
    changed = np.abs(np.asarray(drawn).astype(int) - plain).max(axis=-1) > 8
    ys, xs = np.nonzero(changed)
    scale = drawn.width / WIDTH
    assert np.array([xs.min(), ys.min(), xs.max(), ys.max()]) / scale == pytest.approx([4, 8, 28, 32], abs=1)
    assert drawn.getpixel((round((POINT[0] + 0.5) * scale), round((POINT[1] + 0.5) * scale))) == (255, 200, 20)


def test_marks_are_numbered_by_kind_and_cover_the_pixels_they_name(project: Path, tmp_path: Path):
    region = box_mask((40, 2, 50, 9), HEIGHT, WIDTH)
    Image.fromarray(region).save(tmp_path / "m.png")
    marks = ["--mask", tmp_path / "m.png", "--box", "2,33,30,47", "--point", "63,47"]
    points, box, mask = answer(project, *marks, text="What is <Prompt2>?")["prompts"]
    assert [each["token"] for each in (points, box, mask)] == ["<Prompt0>", "<Prompt1>", "<Prompt2>"]
    assert [each["kind"] for each in (points, box, mask)] == ["point", "box", "mask"]
    assert np.argwhere(marked(points)).tolist() == [[47, 63]]
    assert (marked(box) == box_mask((2, 33, 30, 47), HEIGHT, WIDTH)).all()
    assert (marked(mask) == region).all()
    (stroke,) = answer(project, "--scribble", "5,10,40,10")["prompts"]
    assert marked(stroke)[9:12, 6:40].all() and not marked(stroke)[14:].any()


def test_where_one_points_reaches_the_student(project: Path):
    marks = (["--point", HERE], ["--point", HERE], ["--box", "0,0,64,48"])
    said = [answer(project, "--checkpoint", "0", *mark)["text"] for mark in marks]
    assert said[0] == said[1] != said[2]


def test_at_a_temperature_the_seed_decides(project: Path):
    hot = ["--checkpoint", "0", "--point", HERE, "--temperature", "1.5", "--seed"]
    said = [answer(project, *hot, seed)["text"] for seed in ("3", "3", "4")]
    assert said[0] == said[1] != said[2]


def test_a_turned_photograph_is_asked_about_as_it_is_seen(project: Path, tmp_path: Path):
    turned = Image.open(project.parent / "scene.png").transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    turned.save(tmp_path / "turned.png", exif=exif)
    found = answer(project, "--point", HERE, image=tmp_path / "turned.png")
    assert (found["width"], found["height"], found["text"]) == (WIDTH, HEIGHT, SAYS)
    assert [mask["box"] for mask in found["masks"]] == [[4, 8, 28, 32]]


def test_a_mask_has_the_size_of_a_picture_that_the_student_sees_smaller(project: Path, tmp_path: Path):
    scene = Image.open(project.parent / "scene.png")
    scene.resize((3 * WIDTH, 3 * HEIGHT), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    found = answer(project, "--point", f"{3 * POINT[0] + 1},{3 * POINT[1] + 1}", image=tmp_path / "large.png")
    assert found["masks"][0]["rle"]["size"] == [3 * HEIGHT, 3 * WIDTH]
    assert found["masks"][0]["box"] == pytest.approx([12, 24, 84, 96], abs=6)


def test_any_checkpoint_of_any_store_may_be_asked(project: Path, s3_bucket: str):
    run = Folder(str(project.parent / "runs" / "train"))
    newest, far = run.child(f"step-{STEPS:08d}"), Folder(f"{s3_bucket}/elsewhere/step-{STEPS:08d}")
    for name in newest.names():
        far.write(name, newest.read(name))
    for named in (str(STEPS), newest.url, far.url):
        found = answer(project, "--point", HERE, "--checkpoint", named)
        assert (found["text"], found["checkpoint"]["step"]) == (SAYS, STEPS)


def test_an_exported_folder_may_be_asked_without_a_run(project: Path, exported: Path, tmp_path: Path):
    elsewhere = ["--workspace", tmp_path / "no-run", "--checkpoint", exported]
    found = answer(project, "--point", HERE, *elsewhere)
    assert found == answer(project, "--point", HERE) | {"checkpoint": found["checkpoint"]}
    assert found["checkpoint"]["step"] is None


def bare(project: Path, *args: str | Path) -> Result:
    """The command without a CONFIG."""
    words = ["predict", *args, "--image", project.parent / "scene.png", "--text", QUESTION, "--point", HERE, "--json"]
    words += ["--out", project.parent / "bare", "--max-new-tokens", "16"]
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_folder_that_says_what_it_is_needs_no_config(
    project: Path, exported: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
):
    runs = project.parent / "runs"
    newest, far = runs / "train" / f"step-{STEPS:08d}", Folder(f"{s3_bucket}/bare")
    for path in (*(runs / "vocabulary").iterdir(), *newest.iterdir()):
        far.write(path.relative_to(runs).as_posix(), path.read_bytes())
    monkeypatch.chdir(newest.parent)
    for named in (newest, newest.name, f"{far.url}/train/{newest.name}", exported):
        done = bare(project, "--checkpoint", named, "--set", "resources.threads=2")
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found == answer(project, "--point", HERE, "--checkpoint", newest) | {"checkpoint": found["checkpoint"]}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "--checkpoint: there is no CONFIG that says of which run. Name it, or a folder step-"),
        (["--checkpoint", "40"], "--checkpoint 40: there is no CONFIG"),
        (["--checkpoint", "runs/train"], "--checkpoint runs/train: no whole checkpoint. Name a folder step-"),
        (["--checkpoint", "runs/train/step-00000007"], "no whole checkpoint"),
        (["--checkpoint", "moved/train/step-00000000"], "moved/vocabulary: there is no vocabulary for"),
        (["--checkpoint", "other/train/step-00000000"], "other/vocabulary: it is another vocabulary than that of"),
        (["--checkpoint", "runs/train/step-00000000", "--workspace", "runs"], "--workspace runs: it is a project's"),
        (["--checkpoint", "runs/train/step-00000000", "--set", "train.steps=3"], "--set without a CONFIG: unknown key train"),
    ],
)
def test_a_folder_that_says_too_little_is_told_so_in_a_line(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: list[str], says: str
):
    for name in ("runs", "moved", "other"):
        shutil.copytree(project.parent / "runs" / "train" / "step-00000000", tmp_path / name / "train" / "step-00000000")
    other = Artifact(Folder(str(tmp_path / "other" / "vocabulary")), {"size": 400})
    other.seal("2020", "2020", {}, code="", packages={})
    monkeypatch.chdir(tmp_path)
    done = bare(project, *args)
    assert done.exit_code in (1, 2)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Error:" not in done.stderr, "a fault of ours"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--point", "64,10"], "point 64,10: outside the picture of 64 x 48"),
        (["--point", "nan,10"], "outside the picture"),
        (["--box", "10,10,65,20"], "outside the picture"),
        (["--box", "20,10,10,20"], "it holds no pixel"),
        (["--point", "3;4"], "--point: '3;4' are no numbers with commas between"),
        (["--box", "3,4,5"], "3 numbers, a box is x0,y0,x1,y1"),
        (["--mask", "black.png"], "the mask is empty"),
        (["--mask", "small.png"], "a mask of 9 x 9 on a picture of 64 x 48"),
        (["--mask", "layer.png"], "a mask with transparency"),
        (["--mask", "asked.toml"], "not a picture of a known format"),
        (["--mask", "nowhere.png"], "there is no such mask"),
        (["--point", "1,1", "--point", "33,1", "--point", "1,33", "--point", "33,33"], "4 marks, the student knows 3"),
        (["--point", "1,1", "--point", "2,2"], "<Prompt0> has no patch of 16 pixels that shows it"),
        ([], "it speaks of <Prompt0>, the marks are none"),
        (["--text", "What is this?", "--point", "1,1"], "it mentions none of the marks (<Prompt0>)"),
        (["--text", " "], "there is no question"),
        (["--text", "word " * 9000], "the text is too long: the first turn ends at token"),
        (["--image", "nowhere.png"], "there is no such picture"),
        (["--image", "asked.toml"], "not a picture of a known format"),
        (["--image", ""], "there is no picture"),
        (["--image", "."], "the picture cannot be read"),
        (["--checkpoint", "7"], f"or an exported folder. The run has the steps 0, {STEPS}."),
        (["--checkpoint", "runs/train"], "no whole checkpoint"),
        (["--workspace", "elsewhere"], "there is no complete artifact here"),
        (["--set", "student.hidden=64"], "student.hidden: 32 -> 64. Ask with the config that it was trained with."),
        (["--serve"], "the page asks for picture, text and marks itself"),
    ],
)
def test_what_means_nothing_is_told_so_in_a_line(project: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], says: str):
    monkeypatch.chdir(project.parent)
    Image.new("L", (WIDTH, HEIGHT)).save("black.png")
    Image.new("L", (9, 9), 255).save("small.png")
    Image.new("LA", (WIDTH, HEIGHT)).save("layer.png")
    done = predict(project, *args)
    assert done.exit_code in (1, 2)
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "Error:" not in done.stderr, "a fault of ours"


def test_a_checkpoint_that_counts_words_otherwise_is_refused(project: Path, tmp_path: Path):
    other = write_project(tmp_path, "vocabulary.size = 400")
    done = predict(other, "--checkpoint", project.parent / "runs" / "train" / f"step-{STEPS:08d}", "--point", HERE)
    assert done.exit_code == 1
    assert "its vocabulary is another one" in done.stderr


def test_an_answer_is_not_written_over_its_picture(project: Path):
    before = (project.parent / "scene.png").read_bytes()
    done = predict(project, "--point", HERE, "--out", project.parent)
    assert done.exit_code == 2
    assert "the answer would be written over the picture" in done.stderr
    assert (project.parent / "scene.png").read_bytes() == before


def test_what_a_terminal_would_obey_is_spelt_out():
    assert readable("It is [SEG].\n\x1b[2J") == "It is [SEG].\n\\x1b[2J"
    assert readable("") == "(no words)"
