"""Annotation files joined to a pool of pictures by name and by number, through real Beam pipelines."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from schemas.annotations import Expression
from schemas.artifact import Artifact
from schemas.config import Compat, parse
from schemas.errors import DataError
from schemas.storage import Folder
from schemas.tables import revive
from stages.annotations import AnnotationsStage
from stages.base import JobStage, Outcome, Resources
from stages.pool import PoolStage
from stages.sources.config import CocoSource
from stages.sources.shapes import ShapesConfig, write_shapes
from tests.sample import sample_of

SHARDS = 3
SIZE = 20
HALF = [[0, 0, 10, 0, 10, 20, 0, 20]]


def run(
    stage: JobStage, folder: str, inputs: dict[str, Artifact], resources: Resources | None = None
) -> tuple[Artifact, Outcome]:
    output = Artifact(Folder(folder), {"config": stage.identity(), "outside": stage.outside()}, stage.table(), SHARDS)
    resources = resources or Resources(max_error_rate=1.0)
    return output, stage.run(inputs, output, resources, lambda *_, **__: None)


class Dataset:
    """A COCO data set in a folder: pictures by name, number `n` to the n-th, and one annotation of each."""

    def __init__(self, root: Path):
        self.root = root
        self.names: list[str] = []
        self.fields: dict[str, Any] = {"images": [str(root / "images")]}
        (root / "images").mkdir()

    def picture(self, name: str, like: str = "", form: str = "PNG") -> None:
        rng = np.random.default_rng([ord(letter) for letter in like or name])
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.root / "images" / name, form)

    def list(self, *names: str) -> None:
        self.names += names

    def write(self, kind: str, name: str, data: Any, **config: Any) -> None:
        path = self.root / name
        path.write_bytes(pickle.dumps(data) if name.endswith(".p") else json.dumps(data).encode())
        self.fields[kind] = [*self.fields.get(kind, []), {"path": str(path), **config}]

    def annotate(self) -> None:
        images = [{"id": n, "file_name": name, "width": SIZE, "height": SIZE} for n, name in enumerate(self.names)]
        each = [{"id": 100 + n, "image_id": n, "category_id": 1, "segmentation": HALF} for n in range(len(images))]
        self.write(
            "instances", "instances.json", {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": each}
        )

    def pool(self) -> Artifact:
        source = parse(CocoSource, self.fields, "test")
        return run(PoolStage(images=source.images), str(self.root / "ws" / "images"), {})[0]

    def annotations(
        self, name: str = "annotations", compat: Compat = "correct", **resources: Any
    ) -> tuple[dict[str, dict[str, Any]], Outcome]:
        """alias -> row, and what the stage said."""
        pool = self.pool()
        stage = AnnotationsStage(coco=parse(CocoSource, self.fields, "test"), compat=compat)
        output, outcome = run(stage, str(self.root / "ws" / name), {"images": pool}, Resources(max_error_rate=1.0, **resources))
        rows = {}
        for number in range(SHARDS):
            pairs = zip(pool.read(number).to_pylist(), output.read(number).to_pylist(), strict=True)
            for image, row in pairs:
                assert image["image_key"] == row["image_key"]
                rows |= dict.fromkeys(image["aliases"], row)
        return rows, outcome


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


def reference(image_id: int, ann_id: Any, text: str, split: str) -> dict[str, Any]:
    return {"ref_id": 1, "ann_id": ann_id, "image_id": image_id, "split": split, "sentences": [{"sent": text, "sent_id": 1}]}


def test_every_picture_has_a_row_and_statements_find_theirs(data: Dataset):
    for name in ("a.png", "b.png", "silent.png"):
        data.picture(name)
    data.list("a.png", "b.png")
    data.annotate()
    data.write("refs", "refs.p", [reference(0, 100, "the cat", "train"), reference(1, -1, "no dog", "val")])
    rows, outcome = data.annotations()
    assert [each["segment_id"] for each in rows["a.png"]["objects"]] == [100]
    (said,) = revive(list[Expression], rows["a.png"]["expressions"])
    assert said == Expression("the cat", [100], "train", "refs/train", reference=1)
    assert rows["b.png"]["expressions"][0]["segment_ids"] == []
    assert rows["silent.png"]["objects"] == rows["silent.png"]["faults"] == []
    card = outcome.summary
    assert card["pictures"] == {"evaluation": 1, "neither": 1, "train": 1}
    assert card["objects"] == {"instances": 2}
    assert card["categories of instances"] == {"cat": 2}
    assert card["expressions"] == {"evaluation": 1, "train": 1}
    assert card["no_target"] == {"evaluation": 1, "train": 0}
    assert card["sources"] == {"refs/train": 1, "refs/val": 1}
    assert card["faults"] == card["without_picture"] == {}
    assert outcome.failures == []


@pytest.mark.parametrize(("compat", "said"), [("correct", "the cat"), ("paper", "the cat!")])
def test_files_are_read_as_the_stage_says(data: Dataset, compat: Compat, said: str):
    data.picture("a.png")
    data.list("a.png")
    data.annotate()
    named = reference(0, 100, "the cat", "train")
    named["sentences"][0]["raw"] = "The cat!"
    data.write("refs", "refs.p", [named])
    assert [each["text"] for each in data.annotations(compat=compat)[0]["a.png"]["expressions"]] == [said]


HALF_A_PAIR = "\ud800"  # JSON can say it, UTF-8 cannot


def test_half_a_pair_of_surrogates_anywhere_is_stored_as_a_question_mark(data: Dataset):
    data.picture("a.png")
    data.list("a.png")
    data.annotate()
    said = {"sent": HALF_A_PAIR, "sent_id": f"{HALF_A_PAIR}\n  7"}
    ref = {"ref_id": HALF_A_PAIR, "ann_id": 100, "image_id": 0, "split": HALF_A_PAIR, "sentences": [said]}
    data.write("refs", "refs.json", [ref, ref | {"ann_id": 9}, ref | {"image_id": HALF_A_PAIR}])
    talk = {"id": HALF_A_PAIR, "image": "a.png", "conversations": []}
    data.write("conversations", "llava.json", [talk, talk | {"image": HALF_A_PAIR}], split="train")
    listed = [{"id": 1, "name": HALF_A_PAIR}]
    images = [{"id": 0, "file_name": "a.png"}, {"id": HALF_A_PAIR, "file_name": f"{HALF_A_PAIR}.png"}]
    more = [{"id": 7, "image_id": 0, "category_id": 1, "segmentation": HALF}]
    data.write("instances", "more.json", {"images": images, "categories": listed, "annotations": more})
    rows, outcome = data.annotations()
    assert [each["category"] for each in rows["a.png"]["objects"]] == ["cat", "?"]
    assert [(each["text"], each["source"]) for each in rows["a.png"]["expressions"]] == [("?", "refs/?")]
    assert [fault[:42] for fault in rows["a.png"]["faults"]] == [
        "unknown object: refs: reference ? sentence",
        "text: llava: conversation ?: it has no que",
    ]
    assert sum(outcome.summary["without_picture"].values()) == 2
    assert "\n".join(outcome.failures).encode()


def test_statements_without_a_picture_are_counted_and_named(data: Dataset):
    data.picture("a.png")
    data.list("a.png", "gone.png", "../images/a.png")
    data.annotate()
    refs = [reference(1, 101, "gone", "train"), reference(77, 5, "nowhere", "train"), {"sentences": [], "ann_id": 1}]
    data.write("refs", "refs.p", refs)
    rows, outcome = data.annotations()
    assert len(rows["a.png"]["objects"]) == 1
    assert outcome.summary["without_picture"] == {"instances": 2, "refs": 3}
    said = "\n".join(outcome.failures)
    assert "instances: the pool has no picture 'gone.png': 1 statements" in said
    assert "'../images/a.png' climbs out of its folder" in said
    assert "the image id 77" in said
    assert "does not say which picture" in said
    assert {path.suffix for path in (data.root / "ws" / "annotations").iterdir()} == {".parquet"}


def test_conversations_find_their_picture_and_text_alone_is_counted(data: Dataset):
    for name in ("a.png", "b.png"):
        data.picture(name)
    talk = [{"from": "human", "value": "<image>\nWho is it?"}, {"from": "gpt", "value": "Nobody."}]
    records = [{"id": n, "image": f"set/{name}", "conversations": talk} for n, name in enumerate(("a.png", "../../a.png"))]
    records += [{"id": n, "conversations": talk} for n in (2, 3)]
    data.write("conversations", "llava.json", records, split="train", names={"set/": ""})
    rows, outcome = data.annotations()
    turns = [{"question": "Who is it?", "answer": "Nobody."}]
    assert rows["a.png"]["conversations"] == [
        {"turns": turns, "pointed": [], "segmented": [], "split": "train", "source": "llava"}
    ]
    assert rows["b.png"]["conversations"] is None
    assert outcome.summary["conversations"] == {"train": 1}
    assert outcome.summary["pictures"] == {"neither": 1, "train": 1}
    assert outcome.summary["without_picture"] == {"llava": 3}
    assert outcome.failures == [
        "llava: the name '../../a.png' climbs out of its folder: 1 statements",
        "llava: it has no picture, and text alone is not learned from: 2 statements",
    ]


def test_a_run_that_ends_while_another_is_at_it_leaves_it_what_was_lost(data: Dataset):
    """The second begins, ends and seals as the first has its shards; it is also a resume with nothing missing."""
    data.picture("a.png")
    data.list("a.png", "gone.png")
    data.annotate()
    pool, stage = data.pool(), AnnotationsStage(coco=parse(CocoSource, data.fields, "test"))
    folder, second = str(data.root / "ws" / "annotations"), []

    def progress(done: int, total: int, unit: str, note: str = "") -> None:
        if done == total and not second:
            second.append(None)
            output, second[0] = run(stage, folder, {"images": pool})
            output.seal("", "", {}, code="", packages={})

    output = Artifact(Folder(folder), {"config": stage.identity(), "outside": stage.outside()}, stage.table(), SHARDS)
    first = stage.run({"images": pool}, output, Resources(), progress)
    assert second == [first]
    assert first.summary["without_picture"] == {"instances": 1}
    assert first.failures == ["instances: the pool has no picture 'gone.png': 1 statements"]
    output.folder.remove(output.shard_name(1))
    assert run(stage, folder, {"images": pool})[1] == first


def test_two_names_of_one_picture_share_a_row(data: Dataset):
    data.picture("train2014.png")
    data.picture("train2017.bmp", like="train2014.png", form="BMP")
    data.list("train2014.png", "train2017.bmp")
    data.annotate()
    data.write("refs", "refs.p", [reference(0, 100, "a cat", "train"), reference(1, 101, "the cat", "val")])
    rows, outcome = data.annotations()
    row = rows["train2014.png"]
    assert row == rows["train2017.bmp"]
    assert [each["segment_id"] for each in row["objects"]] == [100, 101]
    assert [each["text"] for each in row["expressions"]] == ["a cat", "the cat"]
    assert outcome.summary["split_leak"] == {"pictures": 1, "image_keys": [row["image_key"]]}
    assert outcome.summary["pictures"] == {"both": 1}


def test_one_number_for_two_pictures_is_not_guessed_at(data: Dataset):
    data.picture("a.png")
    data.picture("b.png")
    data.list("a.png")
    data.annotate()
    data.write("instances", "more.json", {"images": [{"id": 0, "file_name": "b.png"}], "categories": [], "annotations": []})
    data.write("refs", "refs.p", [reference(0, 100, "which?", "train")])
    _, outcome = data.annotations()
    assert outcome.failures == ["refs: the image id 0 stands for 2 different pictures: 1 statements"]


def test_a_name_that_is_not_utf8_is_found_under_its_readable_form(data: Dataset):
    name = os.fsdecode(b"caf\xe9.png")
    data.picture(name)
    data.list(name)
    data.annotate()
    rows, outcome = data.annotations()
    assert len(rows["caf\\xe9.png"]["objects"]) == 1
    assert outcome.failures == []


def test_a_picture_that_cannot_be_decoded_keeps_its_row_and_its_error(data: Dataset):
    (data.root / "images" / "a.png").write_bytes(b"")
    data.picture("b.png")
    data.list("a.png", "b.png")
    data.annotate()
    rows, outcome = data.annotations()
    assert "the file is empty" in rows["a.png"]["error"]
    assert rows["a.png"]["faults"] == ["no pixels: instances: 1 statements: the picture cannot be decoded"]
    assert rows["b.png"]["error"] is None
    assert outcome.summary["faults"] == {"no pixels": 1}


def test_faults_stay_with_their_picture_and_are_counted(data: Dataset):
    data.picture("a.png")
    data.list("a.png")
    data.annotate()
    text = (data.root / "instances.json").read_text()
    data.root.joinpath("instances.json").write_text(text.replace('"category_id": 1', '"category_id": 8'))
    data.write("refs", "refs.p", [reference(0, 100, "the cat", "train")])
    rows, outcome = data.annotations()
    assert rows["a.png"]["faults"] == [
        "category: instances: annotation 100: the file lists no category 8",
        "unknown object: refs: reference 1 sentence 1: instances and panoptic have no usable object 100 on this picture",
    ]
    assert outcome.summary["faults"] == {"category": 1, "unknown object": 1}


def test_a_malicious_pickle_stops_the_stage_and_is_not_executed(data: Dataset):
    data.picture("a.png")
    data.write("refs", "refs.p", [])
    (data.root / "refs.p").write_bytes(b"cos\nmkdir\n(S'" + str(data.root / "made").encode() + b"'\ntR.")
    with pytest.raises(DataError, match=r"refs\.p: the pickle wants to import os\.mkdir"):
        data.annotations()
    assert not (data.root / "made").exists()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """Rendered scenes and their pool."""
    root = tmp_path_factory.mktemp("scenes")
    source = Artifact(Folder(f"{root}/source"), {"scenes": 1})
    write_shapes(ShapesConfig(train=10, evaluation=4, size=64), source.folder, lambda done, total: None)
    source.seal("", "", {}, code="", packages={})
    return source, run(PoolStage(), f"{root}/images", {"source": source})[0]


def test_rendered_scenes_come_through_whole(scenes: tuple[Artifact, Artifact], tmp_path: Path):
    source, pool = scenes
    output, outcome = run(AnnotationsStage(), f"{tmp_path}/annotations", {"images": pool, "source": source}, Resources())
    card = outcome.summary
    instances = json.loads(source.folder.read("instances.json"))["annotations"]
    panoptic = json.loads(source.folder.read("panoptic.json"))
    stuff = {each["id"] for each in panoptic["categories"] if not each["isthing"]}
    segments = [s for a in panoptic["annotations"] for s in a["segments_info"] if s["category_id"] in stuff]
    vres = json.loads(source.folder.read("train_vres.json"))
    assert card["faults"] == card["without_picture"] == {}
    assert card["pictures"] == {"evaluation": 4, "train": 10}
    assert card["objects"]["instances"] == len(instances)
    assert card["objects"]["panoptic"] == len(segments)  # the things among them are the instances
    assert card["references"]["train"] == len(vres)
    assert card["split_leak"]["pictures"] == 0
    assert outcome.failures == []
    captioned = [
        {c["segment_id"] for c in row["captions"]} - {o["segment_id"] for o in row["objects"]} for row in _rows(output)
    ]
    assert captioned == [set()] * 14


def _rows(output: Artifact) -> list[dict[str, Any]]:
    return [row for table in output.iterate() for row in table.to_pylist()]


def _bytes(output: Artifact) -> list[bytes]:
    return [output.folder.read(output.shard_name(number)) for number in range(SHARDS)]


def _threads(folder: str, inputs: dict[str, Artifact]) -> Artifact:
    options = ("--direct_num_workers=2", "--direct_running_mode=multi_threading")
    return run(AnnotationsStage(), folder, inputs, Resources(beam_options=options))[0]


def _after_a_kill(folder: str, inputs: dict[str, Artifact]) -> Artifact:
    output, _ = run(AnnotationsStage(), folder, inputs)
    kept = output.shard_name(1)
    for number in (0, 2):
        output.folder.remove(output.shard_name(number))
    before = output.folder.fs.modified(output.folder.path(kept))
    again, _ = run(AnnotationsStage(), folder, inputs)
    assert output.folder.fs.modified(output.folder.path(kept)) == before
    return again


@pytest.mark.parametrize("another_way", [_threads, _after_a_kill])
def test_the_bytes_are_the_same_however_they_are_made(
    scenes: tuple[Artifact, Artifact], tmp_path: Path, another_way: Callable[..., Artifact]
):
    inputs = {"source": scenes[0], "images": scenes[1]}
    plain, _ = run(AnnotationsStage(), f"{tmp_path}/one", inputs)
    assert _bytes(another_way(f"{tmp_path}/two", inputs)) == _bytes(plain)


# -- the real pictures -------------------------------------------------------------------------------------------------


@pytest.fixture
def sample() -> Path:
    return sample_of("coco")


def as_reference(record: dict[str, Any]) -> dict[str, Any]:
    sentence = {"sent": record["sentence"], "raw": record["sentence"], "sent_id": record["sent_id"]}
    ann_id = -1 if record["no_target"] else record["ann_id"] or record["panoptic_segment_id"]
    return {key: record[key] for key in ("ref_id", "image_id", "split")} | {"ann_id": ann_id, "sentences": [sentence]}


@pytest.mark.sample
def test_the_real_pictures_come_through(sample: Path, tmp_path: Path):
    records = [json.loads(line) for line in (sample / "refs.jsonl").read_text().splitlines()]
    (tmp_path / "refs.p").write_bytes(pickle.dumps([as_reference(record) for record in records], 0))
    fields = {
        "images": [str(sample / "images")],
        "instances": [str(sample / "instances.json"), str(sample / "instances_person_only.json")],
        "panoptic": [str(sample / "panoptic.json")],
        "refs": [str(tmp_path / "refs.p")],
    }
    source = parse(CocoSource, fields, "sample")
    pool, _ = run(PoolStage(images=source.images), f"{tmp_path}/images", {}, Resources())
    output, outcome = run(AnnotationsStage(coco=source), f"{tmp_path}/annotations", {"images": pool}, Resources())

    panoptic = json.loads((sample / "panoptic.json").read_text())["annotations"]
    segments = sum(len(each["segments_info"]) for each in panoptic)
    joined = [r for r in records if r["no_target"] or r["mask_source"]]
    rows = _rows(output)
    assert len(rows) == sum(len(table) for table in pool.iterate()) == 208
    assert outcome.summary["objects"]["instances"] == 1590 + 7
    assert 62 <= outcome.summary["objects"]["panoptic"] < segments  # things that are instances are not taken up again
    assert outcome.summary["crowds"]["instances"] == 17
    drawn = {f"{each['image_id']:012d}.jpg" for each in panoptic}
    found = {row["image_key"] for row in rows if row["objects"]}
    named = {row["image_key"]: set(row["aliases"]) for table in pool.iterate() for row in table.to_pylist()}
    assert len(drawn) == len([key for key in found if named[key] & drawn]) == 62
    assert outcome.summary["expressions"] == {"evaluation": len(joined)} == {"evaluation": 69}
    assert outcome.summary["faults"] == {"unknown object": len(records) - len(joined)}
