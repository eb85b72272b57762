"""The rendered scenes: what is said of them is true, the formats agree, and the same seed gives the same bytes."""

import os
import pickletools
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.artifact import Artifact, verify
from schemas.pictures import examine, image_key
from schemas.regions import Rle
from schemas.storage import Folder
from stages.base import Resources
from stages.source import SourceStage
from stages.sources.shapes import ShapesConfig, write_shapes
from stages.sources.shapes.language import phrases_for
from stages.sources.shapes.scene import compose
from stages.sources.shapes.write import SETTLED
from tests.stages.judge import KINDS, Files, Thing, family, named, only, stands

SCENES = ShapesConfig(train=60, evaluation=12, size=96, objects=(4, 6))
FEW = ShapesConfig(train=9, evaluation=3, size=96)
MANY = ShapesConfig(train=110, evaluation=10, size=64, objects=(1, 2))
RGB = {  # as a painter would mix them
    "red": (214, 35, 45),
    "orange": (248, 120, 20),
    "yellow": (252, 220, 40),
    "green": (45, 158, 65),
    "cyan": (75, 215, 225),
    "blue": (40, 85, 210),
    "purple": (118, 58, 158),
    "pink": (250, 140, 185),
}


def write(config: ShapesConfig, root: Path) -> Folder:
    folder = Folder(str(root))
    names = write_shapes(config, folder, lambda done, total: None)
    assert sorted(names) == list(folder.tree())
    return folder


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.tree()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(write(SCENES, tmp_path_factory.mktemp("scenes")))


@pytest.fixture(scope="module")
def scenes(files: Files) -> dict[str, list[Thing]]:
    """picture -> its shapes"""
    return files.things()


# -- words ------------------------------------------------------------------------------------------------------------


def test_every_expression_names_its_object_and_no_other(files: Files, scenes: dict[str, list[Thing]]):
    seen: dict[str, int] = {}
    for ref in files.load("refs.p"):
        things = scenes[ref["file_name"]]
        for sentence in ref["sentences"]:
            assert only(sentence["sent"], things).annotation["id"] == ref["ann_id"], f"{ref['file_name']}: {sentence['sent']}"
            seen[family(sentence["sent"])] = seen.get(family(sentence["sent"]), 0) + 1
    assert seen.keys() == {"attribute", "size", "relation", "extreme"}
    assert seen["attribute"] > 0.5 * sum(seen.values())


def test_whatever_the_grammar_offers_names_one_shape_only(scenes: dict[str, list[Thing]]):
    """Many more phrases than the few that are written down."""
    offered = 0
    for index, things in enumerate(scenes.values()):
        scene = compose(np.random.default_rng([SCENES.seed, index]), side=SCENES.size, objects=SCENES.objects)
        for number, thing in enumerate(things):
            texts = {phrase.text() for some in phrases_for(scene, number).values() for phrase in some}
            assert all(only(text, things) is thing for text in texts)
            offered += len(texts)
    assert offered > 10 * sum(map(len, scenes.values()))


def test_every_object_has_two_or_three_draws_of_different_words(files: Files):
    refs = files.load("refs.p")
    assert [ref["ann_id"] for ref in refs] == [each["id"] for each in files.load("instances.json")["annotations"]]
    texts = [[sentence["sent"] for sentence in ref["sentences"]] for ref in refs]
    assert all(1 <= len(set(some)) == len(some) <= 3 for some in texts)
    ids = [sentence["sent_id"] for ref in [*refs, *files.load("grefs.json")] for sentence in ref["sentences"]]
    assert len(set(ids)) == len(ids)
    for ref in refs:
        assert all(sentence["tokens"] == sentence["sent"].split() == sentence["raw"].split() for sentence in ref["sentences"])


def test_an_expression_without_a_target_names_nothing(files: Files, scenes: dict[str, list[Thing]]):
    refs = files.load("grefs.json")
    assert refs
    for ref in refs:
        assert ref["no_target"] and ref["ann_id"] == [-1]
        for sentence in ref["sentences"]:
            assert named(sentence["sent"], scenes[ref["file_name"]], strictly=False) == []


def test_references_hold_plain_data_only(files: Files):
    opcodes = {opcode.name for opcode, _, _ in pickletools.genops(files.folder.read("refs.p"))}
    assert not opcodes & {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1"}


def test_captions_tell_place_and_neighbour(scenes: dict[str, list[Thing]]):
    rows, columns = ("upper", "", "lower"), ("left", "", "right")
    alone = {
        "": "in the centre",
        "upper": "at the top",
        "lower": "at the bottom",
        "left": "on the left",
        "right": "on the right",
    }
    neighbours = 0
    for things in scenes.values():
        for thing in things:
            row, column = rows[int(3 * thing.y)], columns[int(3 * thing.x)]
            place = f"in the {row} {column}" if row and column else alone[row + column]
            start = f"a {thing.size} {thing.noun} {place}"
            assert thing.caption.startswith(start)
            if rest := thing.caption.removeprefix(start):
                relation, anchor = re.fullmatch(r", (.+?) (the .+)", rest).groups()
                assert stands(relation, thing, only(anchor, things), strictly=True)
                neighbours += 1
    assert neighbours


def test_captions_of_the_evaluation_are_those_of_the_segments(files: Files, scenes: dict[str, list[Thing]]):
    detailed = files.load("perbench/detailed_caption.json")
    assert [each["image_name"] for each in detailed] == [name for name in scenes if name.startswith("eval/")]
    for each in detailed:
        things = scenes[each["image_name"]]
        assert [thing.caption for thing in things] == [said["caption"] for said in each["object_annotations"]]
        assert [thing.noun for thing in things] == [
            at(said["segmentation"], things).noun for said in each["object_annotations"]
        ]


def at(segmentation: dict[str, Any], things: list[Thing]) -> Thing:
    """The shape that a run-length mask is, pixel for pixel."""
    mask_HW = mask_of(segmentation)
    (thing,) = (thing for thing in things if (thing.mask_HW == mask_HW).all())
    return thing


def mask_of(segmentation: Any) -> np.ndarray:
    return Rle.from_coco(segmentation, SCENES.size, SCENES.size).mask()


def test_a_question_has_exactly_one_right_option(files: Files, scenes: dict[str, list[Thing]]):
    subjects = set()
    for record in [*files.load("train_mcq.json"), *files.load("perbench/mcq.json")]:
        things = scenes[record["image_name"]]
        for asked in record["mcqs"]:
            question, *options = re.fullmatch(r"which (.+)\? A\. (.+) B\. (.+) C\. (.+) D\. (.+)", asked["question"]).groups()
            thing = at(asked["object"], things)
            sure, possible = (right_answers(question, thing, things, strictly=strictly) for strictly in (True, False))
            lines = [f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)]
            assert len(set(options)) == 4
            assert [line for line in lines if line[3:] in possible] == [asked["answer"]], asked
            assert asked["answer"][3:] in sure
            subjects.add(question)
    assert {"colour is it", "shape is it"} < subjects


def right_answers(question: str, thing: Thing, things: list[Thing], *, strictly: bool) -> set[str]:
    if question in ("colour is it", "shape is it"):
        return {thing.colour if question.startswith("colour") else thing.kind}
    side = re.fullmatch(r"shape is (.+) it", question).group(1)
    others = [other for other in things if other is not thing]
    return {other.noun for other in others if stands(side, other, thing, strictly=strictly)}


@pytest.mark.parametrize("name", ["train_vres.json", "perbench/vres.json"])
def test_a_pointer_leads_to_exactly_one_shape(files: Files, scenes: dict[str, list[Thing]], name: str):
    records = files.load(name)
    assert records
    for record in records:
        things = scenes[record["image_name"]]
        prompt, target = (at(record["segmentations"][tag], things) for tag in ("<object1>", "<object2>"))
        assert record["answer"] == "<object2>" and "<object1>" in record["question"]
        assert only(record["question"].removeprefix("segment "), things, prompt) is target


# -- masks ------------------------------------------------------------------------------------------------------------


def test_masks_are_those_of_the_panoptic_png(scenes: dict[str, list[Thing]]):
    sorts = {list: 0, dict: 0}
    for things in scenes.values():
        for thing in things:
            annotation, segmentation = thing.annotation, thing.annotation["segmentation"]
            mask_HW = mask_of(segmentation)
            sorts[type(segmentation)] += 1
            assert (mask_HW == thing.mask_HW).all()
            assert annotation["area"] == thing.mask_HW.sum()
            assert annotation["bbox"] == box_of(thing.mask_HW)
    assert min(sorts.values()) > 5


def box_of(mask_HW: np.ndarray) -> list[int]:
    y, x = np.nonzero(mask_HW)
    return [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]


def test_no_pixel_belongs_to_two_shapes(files: Files):
    for each in files.load("perbench/detailed_caption.json"):
        masks_NHW = np.array([mask_of(said["segmentation"]) for said in each["object_annotations"]])
        assert masks_NHW.sum(axis=0).max() == 1


def test_the_panoptic_file_accounts_for_every_pixel(files: Files):
    panoptic = files.load("panoptic.json")
    categories = {each["id"]: each for each in panoptic["categories"]}
    instances = files.load("instances.json")["annotations"]
    for annotation in panoptic["annotations"]:
        ids_HW, segments = files.ids_HW(annotation["image_id"]), annotation["segments_info"]
        assert {segment["id"] for segment in segments} == set(np.unique(ids_HW).tolist())
        for segment in segments:
            assert segment["area"] == (ids_HW == segment["id"]).sum()
            assert segment["bbox"] == box_of(ids_HW == segment["id"])
        things = [each for each in segments if categories[each["category_id"]]["isthing"]]
        twins = [each for each in instances if each["image_id"] == annotation["image_id"]]
        assert [(e["category_id"], e["area"], e["bbox"]) for e in things] == [
            (e["category_id"], e["area"], e["bbox"]) for e in twins
        ]
        assert 1 <= len(segments) - len(things) <= 2


def test_categories_are_the_kinds(files: Files, scenes: dict[str, list[Thing]]):
    names = {each["id"]: each["name"] for each in files.load("instances.json")["categories"]}
    assert {names[thing.annotation["category_id"]] for things in scenes.values() for thing in things} <= set(KINDS)
    assert all(names[thing.annotation["category_id"]] == thing.kind for things in scenes.values() for thing in things)


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_decode_at_their_size(files: Files):
    forms = [examine(files.folder.read(name)) for name in files.images]
    assert {pixels_HWC.shape for _, pixels_HWC in forms} == {(SCENES.size, SCENES.size, 3)}
    assert [form for form, _ in forms] == ["PNG" if number % 10 == 0 else "JPEG" for number in range(1, len(forms) + 1)]
    assert {(image["width"], image["height"]) for image in files.images.values()} == {(SCENES.size, SCENES.size)}


def test_shapes_have_the_colour_and_the_size_that_is_said(files: Files, scenes: dict[str, list[Thing]]):
    for name, things in scenes.items():
        _, pixels_HWC = examine(files.folder.read(name))
        for thing in things:
            seen = hue(np.median(pixels_HWC[thing.mask_HW], axis=0))
            assert min(RGB, key=lambda colour: np.abs(seen - hue(RGB[colour])).sum()) == thing.colour, name
            longest = max(thing.annotation["bbox"][2:]) / SCENES.size
            if isinstance(thing.annotation["segmentation"], list):  # nothing of it is hidden
                assert (longest < 0.28) == (thing.size == "small")


def hue(rgb: Any) -> np.ndarray:
    """The colour without its brightness, which light and shadow change."""
    return np.asarray(rgb) / np.sum(rgb)


def test_no_evaluation_scene_is_seen_in_training(files: Files):
    images, refs = files.images, [*files.load("refs.p"), *files.load("grefs.json")]
    splits = {image["id"]: "train" if name.startswith("train/") else "val" for name, image in images.items()}
    assert len(splits) == SCENES.train + SCENES.evaluation
    assert all(ref["split"] == splits[ref["image_id"]] for ref in refs)
    assert all(each["split"] == splits[each["image_id"]] for each in files.load("captions.json")["annotations"])
    for name in ("mcq", "vres"):
        assert {each["image_name"].split("/")[0] for each in files.load(f"perbench/{name}.json")} == {"eval"}
        assert {each["image_name"].split("/")[0] for each in files.load(f"train_{name}.json")} == {"train"}
    keys = {name: image_key(examine(files.folder.read(name))[1]) for name in images}
    assert len(set(keys.values())) == len(keys)


# -- the same bytes again ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """name -> bytes of a few scenes, rendered in one go"""
    return contents(write(FEW, tmp_path_factory.mktemp("few")))


def test_the_seed_decides_every_byte(first: dict[str, bytes], tmp_path: Path):
    again = contents(write(FEW, tmp_path / "again"))
    other = contents(write(FEW.model_copy(update={"seed": 1}), tmp_path / "other"))
    assert again == first
    assert other.keys() == first.keys()
    assert [name for name in first if other[name] == first[name]] == []


def test_a_scene_does_not_depend_on_how_many_there_are(files: Files, tmp_path: Path):
    """Here four of the first six are for training and two for evaluation."""
    few = Files(write(SCENES.model_copy(update={"train": 4, "evaluation": 2}), tmp_path))
    assert list(few.images) == [f"{folder}/{n:012}.jpg" for n, folder in enumerate(4 * ["train"] + 2 * ["eval"], start=1)]
    for name, image in few.images.items():
        before = name.replace("eval", "train")
        assert few.folder.read(name) == files.folder.read(before)
        png = f"panoptic/{image['id']:012}.png"
        assert few.folder.read(png) == files.folder.read(png)
    for name in ("instances.json", "panoptic.json", "captions.json"):
        assert first_six(few.load(name)["annotations"]) == first_six(files.load(name)["annotations"])
    for name in ("refs.p", "grefs.json"):
        assert first_six(few.load(name)) == first_six(files.load(name))


def first_six(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of the first six scenes, without what says which split they belong to."""
    apart = ("split", "file_name")
    return [{key: each[key] for key in each if key not in apart} for each in records if each["image_id"] <= 6]


def test_a_second_run_makes_what_is_missing_and_only_that(first: dict[str, bytes], tmp_path: Path):
    """As long as the first had said that its pictures were settled on the disk."""
    folder = write(FEW, tmp_path)
    folder.write(SETTLED, str(FEW.train + FEW.evaluation).encode())
    gone = list(first)[::2]
    for name in gone:
        folder.remove(name)
    kept = {name: os.stat(tmp_path / name).st_ino for name in first if name not in gone and "/0" in name}
    write(FEW, tmp_path)
    assert contents(folder) == first
    assert len(kept) > 10
    assert {name: os.stat(tmp_path / name).st_ino for name in kept} == kept


@pytest.mark.parametrize(("kept", "left"), [(0, b""), (0, bytes(3000)), (200, b""), (200, bytes(3000))])
def test_a_picture_that_a_power_cut_left_torn_is_painted_anew(first: dict[str, bytes], tmp_path: Path, kept: int, left: bytes):
    folder = write(FEW, tmp_path)
    for name in ("train/000000000001.jpg", "eval/000000000010.png", "panoptic/000000000002.png"):
        folder.write(name, first[name][:kept] + left)
    write(FEW, tmp_path)
    assert contents(folder) == first


def test_a_killed_run_leaves_whole_files_and_is_taken_up(tmp_path: Path):
    unbroken, killed = contents(write(MANY, tmp_path / "unbroken")), Folder(str(tmp_path / "killed"))
    code = f"""
import os, signal
from schemas.storage import Folder
from stages.sources.shapes import ShapesConfig, write_shapes
def progress(done, total):
    if done > 20:
        os.kill(os.getpid(), signal.SIGKILL)
write_shapes(ShapesConfig.model_validate_json({MANY.model_dump_json()!r}), Folder({killed.url!r}), progress)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert run.returncode == -signal.SIGKILL
    left = {name: data for name, data in contents(killed).items() if name != SETTLED}
    assert len(left) > 40
    assert all(unbroken[name] == data for name, data in left.items())
    (tmp_path / "killed/train/.000000000030.png.0.tmp").write_bytes(unbroken["train/000000000030.png"][:99])
    write(MANY, tmp_path / "killed")
    assert contents(killed) == unbroken


# -- the stage --------------------------------------------------------------------------------------------------------


def test_the_stage_tells_how_far_it_is_and_its_files_can_be_verified(tmp_path: Path):
    told: list[tuple[int, int, str, str]] = []
    stage, output = SourceStage(shapes=MANY), Artifact(Folder(str(tmp_path)), {"stage": "source"})
    outcome = stage.run({}, output, Resources(), lambda done, total, unit, note="": told.append((done, total, unit, note)))
    record = output.seal("then", "now", {}, code="", packages={}, summary=outcome.summary)
    assert len(told) <= 100
    assert told[-1] == (120, 120, "scenes", "")
    assert [done for done, *_ in told] == sorted({done for done, *_ in told})
    assert outcome.summary == {"files": len(record.parts), "scenes": 120}
    assert verify(output.folder) == []
