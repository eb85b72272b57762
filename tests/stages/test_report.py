import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas import tables
from schemas.annotations import STATEMENTS
from schemas.artifact import Artifact
from schemas.dialogue import PromptSlot, Turn
from schemas.errors import BrokenArtifact, DataError
from schemas.features import FeatureSpec
from schemas.regions import Rle, Segment, VisualPrompt, box_mask
from schemas.storage import Folder
from stages.base import Resources
from stages.report import ReportStage, scores
from stages.report.pictures import sheet
from stages.report.reading import Prediction, Spot
from stages.report.results import NAMES
from stages.report.training import read_history, variance

H, W, SHARDS, PICTURES = 48, 64, 2, 6
KEYS = [f"{n:032x}" for n in range(PICTURES)]
BOX = (10, 10, 20, 20)
NASTY = 'Segment <b>&"bold"</b> here.'


def rle(*box: int) -> Rle:
    return Rle.of(box_mask(box, H, W)) if box else Rle.of(np.zeros((H, W), bool))


def picture(n: int) -> bytes:
    """A blue ground that differs from picture to picture, with a red square in `BOX`."""
    pixels = np.full((H, W, 3), (30, 60 + 20 * n, 200), np.uint8)
    pixels[10:20, 10:20] = (220, 30, 30)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def feature(spec: FeatureSpec, n: int) -> np.ndarray:
    """Channel c is c plus or minus 1, half and half: its variance is 1 exactly."""
    sign = np.where(np.indices(spec.grid).sum(axis=0) % 2 == n % 2, 1.0, -1.0)
    return (sign + np.arange(spec.channels)[:, None, None]).astype(np.float32)


ASKED = {  # sample -> targets, first predicted masks, and what the untrained student segmented
    "exact": ([rle(*BOX)], [rle(*BOX)], []),
    "twice": ([rle(*BOX)], [rle(10, 10, 30, 20)], []),
    "missed": ([rle(*BOX)], [], [rle(40, 30, 50, 40)]),
    "void": ([rle()], [rle()], []),
    "ghost": ([rle()], [rle(0, 0, 5, 5)], [rle(0, 0, 5, 5)]),
}


def predictions(trained: bool) -> list[dict]:
    rows = [
        row(name, "segmentation", NASTY, "It is [SEG].", "It is [SEG].", targets, masks if trained else floor)
        for name, (targets, masks, floor) in ASKED.items()
    ]
    rows.append(row("ref", "reference", "Segment what <Prompt0> holds.", "[SEG]", "[SEG]", [rle(*BOX)], [rle(15, 10, 25, 20)]))
    wrong, said = "<Prompt0>: blue sky", "<Prompt0>: A red square on blue."
    rows += [row(f"caption{n}", "caption", "Describe <Prompt0> in detail.", said, said if trained else wrong) for n in (0, 1)]
    question = "Look at <Prompt0>. What is it? A. red B. blue Select the correct choice."
    return rows + [row(f"choice{n}", "choice", question, "A. red", "A. red" if trained and n else "B. blue") for n in (0, 1)]


def row(name: str, task: str, question: str, expected: str, text: str, targets=(), masks=()) -> dict:
    key = KEYS[4 + len(name) % 2]
    said = {"question": question, "expected": expected, "text": text, "targets": list(targets), "masks": list(masks)}
    return {"sample_id": name, "image_key": key, "task": task} | said


def samples() -> list[dict]:
    trained = {"sample_id": "t", "image_key": KEYS[0], "split": "train", "task": "caption", "masks": [rle(*BOX)], "source": ""}
    rows = [trained | {"turns": [Turn("Describe <Prompt0>.", "red")], "prompts": [PromptSlot(0, rle(*BOX))]}]
    for asked in predictions(True):
        turns, slots = [Turn(asked["question"], asked["expected"])], [PromptSlot(0, rle(*BOX))]
        dialogue = {"split": "evaluation", "turns": turns, "masks": asked["targets"], "prompts": slots, "source": ""}
        rows.append({name: asked[name] for name in ("sample_id", "image_key", "task")} | dialogue)
    return rows


def history(steps: int = 60) -> str:
    """sam2 falls to a quarter of its start, mask2former from 0.4 to 0.35."""
    late = lambda step: step >= 20  # noqa: E731
    lines = [
        {"step": s, "lr": 1e-3, "lm": 10.0 / (s + 1), "total": 5.0, "grad_norm": 1.0}
        | {"distill/sam2": 0.5 if late(s) else 2.0, "distill/mask2former": 0.35 if late(s) else 0.4}
        for s in range(steps)
    ]
    return "\n".join(map(json.dumps, lines))


class Workspace:
    """Sealed artifacts in a folder, by name."""

    def __init__(self, root: Path):
        self.folder, self.made = Folder(str(root)), {}

    def table(self, name: str, table: tables.Table, rows: list[dict], inputs: tuple = (), **config) -> None:
        made = self._artifact(name, config, inputs, table)
        for number in range(SHARDS):
            of_shard = [row for row in rows if KEYS.index(row["image_key"]) % SHARDS == number]
            made.write(number, table.rows(sorted(of_shard, key=lambda row: row["image_key"])))
        self._seal(made, inputs)

    def files(self, name: str, files: dict[str, str], inputs: tuple = (), **config) -> None:
        made = self._artifact(name, config, inputs)
        for file, text in files.items():
            made.folder.write(file, text.encode())
        self._seal(made, inputs)

    def _artifact(self, name: str, config: dict, inputs: tuple, table: tables.Table | None = None) -> Artifact:
        identity = {"config": config, "outside": {}, "inputs": {role: self.made[role].fingerprint for role in inputs}}
        self.made[name] = Artifact(self.folder.child(name), identity, table, SHARDS if table else 0, name)
        return self.made[name]

    def _seal(self, made: Artifact, inputs: tuple) -> None:
        more = {
            "code": "abc1234",
            "packages": {"numpy": "2.4"},
            "failures": ["shard 0: a fault"] if made.name == "prompts" else [],
        }
        times = "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:30+00:00"
        made.seal(*times, {role: self.made[role] for role in inputs}, **more)

    def inputs(self, *without: str) -> dict[str, Artifact]:
        return {name: made for name, made in self.made.items() if name not in ("source", "vocabulary", *without)}


def build(root: Path, weights: str = "random") -> Workspace:
    space = Workspace(root)
    space.files("source", {"refs.json": "{}"}, kind="shapes")
    size = {"width": W, "height": H, "format": "PNG"}
    pictures = [{"image_key": key, "bytes": picture(n), "aliases": [f"{n}.png"]} | size for n, key in enumerate(KEYS)]
    pictures = [row | {"sha256": hashlib.sha256(row["bytes"]).hexdigest()} for row in pictures]
    space.table("images", tables.IMAGES, pictures, ("source",))
    square = Segment(1, "square", True, False, 1.0, "ground_truth", rle(*BOX))
    said = {column: [] for column in STATEMENTS}
    sides = {"width": W, "height": H}
    notes = [{"image_key": key, "objects": [square], "faults": ["ref 9 names nothing known"]} | said | sides for key in KEYS]
    space.table("annotations", tables.ANNOTATIONS, notes, ("source", "images"))
    segments = [{"image_key": key, "segments": [square]} for key in KEYS]
    space.table("segments/ground_truth", tables.SEGMENTS, segments, ("images", "annotations"), teacher=None)
    marks = [
        VisualPrompt(1, "point", [15.0, 15.0], rle(15, 15, 16, 16), "square"),
        VisualPrompt(1, "mask", [], rle(*BOX), "sq"),
    ]
    marks += [VisualPrompt(1, "box", list(map(float, BOX)), rle(*BOX), "a box")]
    marks += [VisualPrompt(1, "scribble", [11.0, 11.0, 18.0, 18.0], rle(*BOX), "a stroke")]
    space.table("prompts", tables.PROMPTS, [{"image_key": key, "prompts": marks} for key in KEYS], ("segments/ground_truth",))
    space.table("samples", tables.SAMPLES, samples(), ("annotations", "prompts"))
    space.files("vocabulary", {"tokenizer.json": "{}"}, ("samples",))
    for name in ("sam2", "mask2former"):
        spec = FeatureSpec(teacher=name, layer="x", channels=8, grid=(4, 6))
        rows = [tables.feature_row(spec, key, feature(spec, n)) for n, key in enumerate(KEYS)]
        space.table(f"features/{name}", tables.features(spec), rows, ("images",), teacher={"kind": name, "weights": weights})
    loss = {"distillation": {name: {"reads": "patches", "weight": 0.5} for name in ("sam2", "mask2former")}}
    learned = ("samples", "images", "vocabulary", "features/sam2", "features/mask2former")
    space.files("train", {"metrics.jsonl": history()}, learned, loss=loss)
    for name in ("trained", "untrained"):
        rows = predictions(name == "trained")
        space.table(f"predictions/{name}", tables.PREDICTIONS, rows, ("samples", "images", "train"), weights=name)
    return space


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return build(tmp_path_factory.mktemp("workspace"))


def report(inputs: dict[str, Artifact], root: Path, **config) -> tuple[str, dict]:
    """The page and the metrics."""
    output = Artifact(Folder(str(root)), {"stage": "report"}, name="report")
    ReportStage(**{"title": "a run", "examples": 3} | config).run(inputs, output, Resources(), lambda *told: None)
    assert set(output.folder.names()) == {"report.html", "metrics.json"}
    return output.folder.read("report.html").decode(), json.loads(output.folder.read("metrics.json"))


@pytest.fixture(scope="module")
def made(space: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    return report(space.inputs(), tmp_path_factory.mktemp("report"))


class Page(HTMLParser):
    """Checks that what is opened is closed, and gathers elements, sources, links and text."""

    VOID = ("meta", "img", "path", "line", "circle", "rect", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.sources, self.links, self.ids, self.text = [], [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.sources += [given["src"]] if "src" in given else []
        self.links += [given["href"]] if "href" in given else []
        self.ids += [given["id"]] if "id" in given else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else, at {self.getpos()}"

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""

    def count(self, tag: str, kind: str) -> int:
        return sum(name == tag and kind in given.get("class", "").split() for name, given in self.tags)


def test_the_scores_are_those_computed_by_hand(made):
    trained, untrained = made[1]["trained"], made[1]["untrained"]
    assert trained["segmentation"] == pytest.approx(
        {"count": 5, "ciou": 200 / 425, "giou": 0.5, "precision": 2 / 3, "t_acc": 2 / 3, "n_acc": 0.5}, abs=1e-6
    )
    assert untrained["segmentation"] == pytest.approx(
        {"count": 5, "ciou": 0.0, "giou": 0.2, "precision": 0.0, "t_acc": 1 / 3, "n_acc": 0.5}, abs=1e-6
    )
    assert trained["reference"]["ciou"] == pytest.approx(50 / 150)
    assert trained["caption"]["rouge_l"] == pytest.approx(1.0)
    assert untrained["caption"]["rouge_l"] < 0.5
    assert trained["reference"]["ciou_paper"] == pytest.approx(50 / 150)
    assert trained["choice"] == {"count": 2, "accuracy": 0.5, "accuracy_paper": 0.5}
    assert trained["overall"]["perbench_by_rouge_l"] == pytest.approx((1 + 0.5 + 1 / 3) / 3, abs=1e-5)


def test_the_scores_of_the_paper_are_a_set_of_their_own():
    spot, two = Spot(0, KEYS[0]), [rle(*BOX), rle(40, 30, 50, 40)]
    said = {"spot": spot, "question": "Which? A. red B. blue", "expected": "A. red", "targets": [], "masks": []}
    rows = [
        Prediction(**said | {"sample_id": "a", "task": "reference", "text": "[SEG]", "targets": two, "masks": two[:1]}),
        Prediction(**said | {"sample_id": "b", "task": "reference", "text": "none", "targets": two[:1]}),
        Prediction(**said | {"sample_id": "c", "task": "choice", "text": "B. not the A. red"}),
        Prediction(**said | {"sample_id": "d", "task": "caption", "text": "A. red"}),
    ]
    found = scores.of(rows)
    keys = ("ciou", "giou", "ciou_paper", "giou_paper")
    assert [found["reference"][key] for key in keys] == pytest.approx([0.5, 0.5, 1.0, 0.25], abs=1e-4)
    assert [found["choice"][key] for key in ("accuracy", "accuracy_paper")] == [0.0, 1.0]
    assert found["overall"] == {"perbench_by_rouge_l": pytest.approx((1 + 0 + 0.5) / 3, abs=1e-4)}, "no METEOR was asked for"
    with_meteor = {**found, "caption": {"meteor": 0.6, "meteor_paper": 0.3}}
    assert scores.overall_of(with_meteor)["overall"] == {
        "perbench": pytest.approx((0.6 + 0.0 + 0.5) / 3, abs=1e-4),
        "perbench_paper": pytest.approx((0.3 + 1.0 + 0.625) / 3, abs=1e-4),
    }
    named = {key for task in (found | with_meteor | scores.overall_of(with_meteor)).values() for key in task}
    assert named <= {"count", *NAMES}, "each is shown"


def test_the_fall_of_a_distillation_loss_is_measured_and_a_failure_explained(made):
    falls = made[1]["distillation"]
    assert falls["sam2"] == pytest.approx(
        {"start": 2.0, "end": 0.5, "ratio": 0.25, "halved": True, "channel_mean_loss": 0.5}, abs=1e-9
    )
    assert (falls["mask2former"]["start"], falls["mask2former"]["halved"]) == (pytest.approx(0.4), False)
    assert "60% of the teacher's variance" in falls["mask2former"]["reason"]  # 0.2 is 40 % of the loss of the means, 0.5
    assert "30% was" in falls["mask2former"]["reason"]  # 0.35 is 70 %


def test_counts_sizes_and_times_come_from_the_tables_and_records(made):
    metrics = made[1]
    images = metrics["artifacts"]["images"]
    assert (images["rows"], images["failed"], images["seconds"], images["rows_per_second"]) == (6, 0, 30.0, 0.2)
    assert images["bytes"] > sum(len(picture(n)) for n in range(PICTURES))
    assert metrics["contents"]["annotations"]["objects"] == metrics["contents"]["segments/ground_truth"]["segments"] == 6
    assert metrics["contents"]["prompts"]["box prompts"] == 6
    assert metrics["contents"]["samples"]["evaluation"] == {"caption": 2, "choice": 2, "reference": 1, "segmentation": 5}
    assert metrics["pictures_in_both_splits"] == 0


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(made):
    text = made[0]
    page = Page(text)
    assert page.sources and all(source.startswith("data:image/webp;base64,") for source in page.sources)
    for source in page.sources:
        Image.open(io.BytesIO(base64.b64decode(source.split(",")[1], validate=True))).load()
    assert page.links and {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", re.sub(r"base64,[\w+/=]+", "", text))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}


def test_what_was_written_by_others_is_text_and_not_markup(made):
    assert NASTY in Page(made[0]).text


def test_every_section_is_there(made):
    page = Page(made[0])
    assert {"results", "training", "examples", "teachers", "prompts", "data", "lineage"} <= set(page.ids)
    assert "47.1" in page.text  # the cIoU above, in per cent
    assert "3 faults" not in page.text and "6 faults" in page.text and "1 failure" in page.text


def test_the_same_inputs_make_the_same_bytes(space, made, tmp_path):
    assert report(space.inputs(), tmp_path) == made


def test_examples_are_ranked_as_their_headings_say(tmp_path):
    space = Workspace(tmp_path)
    asked = [row(f"s{n}", "segmentation", "Segment it.", "", "", [rle(0, 0, 10, 10)], [rle(0, 0, 10, n)]) for n in range(1, 10)]
    space.table("predictions/trained", tables.PREDICTIONS, asked)
    text = Page(report(space.inputs(), tmp_path / "report")[0]).text
    scores = [float(score) for score in re.findall(r"IoU (\d\.\d\d)", text)]
    assert scores == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1, 0.2, 0.3]
    assert ["best 3 of 9" in text, "typical, 3 around the median of 9" in text, "worst 3 of 9" in text] == [True] * 3


@pytest.mark.parametrize(
    "without",
    [
        ("samples", "train"),
        ("features/sam2", "predictions/untrained", "annotations"),
        ("predictions/trained", "prompts", "segments/ground_truth"),
        ("images",),
    ],
)
def test_a_role_may_be_missing(space, tmp_path, without):
    text, metrics = report(space.inputs(*without), tmp_path, examples=1)
    Page(text)
    assert metrics["trained" if "predictions/trained" not in without else "untrained"]["segmentation"]["count"] == 5


def test_pictures_alone_make_a_report(space, tmp_path):
    text, metrics = report({"images": space.made["images"]}, tmp_path)
    assert {"data", "lineage"} <= set(Page(text).ids)
    assert "trained" not in metrics


def test_random_teachers_are_announced(made):
    page = Page(made[0])
    assert page.count("div", "banner") == 1
    assert "The teachers of this run have random weights" in page.text


def test_trained_teachers_are_not(tmp_path):
    space = build(tmp_path / "workspace", weights="facebook/sam2.1-hiera-tiny")
    page = Page(report(space.inputs(), tmp_path / "report", examples=1)[0])
    assert page.count("div", "banner") == 0
    assert "facebook/sam2.1-hiera-tiny" in page.text


def test_lineage_reaches_artifacts_that_are_no_inputs_and_trusts_only_their_fingerprints(tmp_path):
    space = build(tmp_path / "workspace")
    images = {"images": space.made["images"]}
    _, metrics = report(images, tmp_path / "one")
    assert list(metrics["artifacts"]) == ["source", "images"]
    old = space.made["source"].fingerprint
    space.files("source", {"refs.json": "[]"}, kind="other")
    text, metrics = report(images, tmp_path / "two")
    assert list(metrics["artifacts"]) == ["images"]
    assert old[:12] in text and space.made["source"].fingerprint[:12] not in text


def test_a_step_logged_twice_counts_once_and_a_broken_log_is_named(tmp_path):
    space = Workspace(tmp_path)
    space.files("train", {"metrics.jsonl": '{"step": 1, "lm": 3.0}\n{"step": 0, "lm": 4.0}\n{"step": 1, "lm": 2.0}'})
    found = read_history(space.made["train"])
    assert (found["step"].tolist(), found["lm"].tolist()) == ([0.0, 1.0], [4.0, 2.0])
    space.files("train", {"metrics.jsonl": '{"step": 1, "lm'})
    with pytest.raises(BrokenArtifact, match=r"metrics\.jsonl"):
        read_history(space.made["train"])


def test_variance_is_about_each_channels_own_mean(space):
    assert variance(space.made["features/sam2"]) == pytest.approx(1.0)


def test_every_table_has_a_contact_sheet(space):
    images = space.made["images"]
    for name, made in space.inputs("train").items():
        data = sheet(made, images, count=3)
        drawn = np.asarray(Image.open(io.BytesIO(data)))
        blue = (drawn[..., 2] > 150) & (drawn[..., 0] < 80)
        assert blue.mean() > 0.1, f"{name}: the pictures are not on its sheet"
        assert data == sheet(made, images, count=3)
        assert data != sheet(made, None, count=3) or name == "images"


def test_plain_files_have_no_contact_sheet(space):
    with pytest.raises(DataError, match="files"):
        sheet(space.made["train"], space.made["images"])
