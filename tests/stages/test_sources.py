"""Annotation files, read and joined to one picture of 40 x 30 pixels, and what goes wrong in them."""

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.annotations import Caption, Choice, Expression, Reference, Tag
from schemas.errors import ConfigError, DataError
from schemas.regions import Rle
from stages.sources.config import ImageFolder
from stages.sources.listing import annotation_digests, images_digest, listing
from stages.sources.pickles import read_pickle
from tests.stages.annotated import HEIGHT, NAME, WIDTH, Files, annotation, coco, kinds, left_half, panoptic, reference, rle

# -- objects -----------------------------------------------------------------------------------------------------------


def test_polygons_crowds_and_categories(files: Files):
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, 600, 600]}
    two = [annotation(11), annotation(12, segmentation=crowd, iscrowd=1)]
    draft = files.add("instances", "instances.json", coco(two)).draft()
    assert not draft.faults
    assert [(s.segment_id, s.category, s.is_crowd, s.rle.area, s.source) for s in draft.objects] == [
        (11, "cat", False, 600, "instances"),
        (12, "cat", True, 600, "instances"),
    ]


def test_a_polygon_partly_outside_is_clipped_and_one_outside_is_a_fault(files: Files):
    partly = annotation(1, segmentation=[[-10, 0, 20, 0, 20, 30, -10, 30]])
    outside = annotation(2, segmentation=[[50, 5, 60, 5, 60, 9, 50, 9]])
    draft = files.add("instances", "i.json", coco([partly, outside])).draft()
    assert [(s.segment_id, s.rle) for s in draft.objects] == [(1, Rle.of(left_half()))]
    assert draft.faults == ["outside: i: annotation 2: the polygon lies outside its picture"]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("not finite", {"bbox": [0, 0, float("nan"), 3]}),
        ("not finite", {"bbox": [0, 0, float("inf"), 3]}),
        ("mask", {"segmentation": [[0, 0, float("nan"), 0, 5, 5]]}),
        ("mask", {"segmentation": [[0, 0, 5, 5]]}),
        ("mask", {"segmentation": {"size": [HEIGHT, WIDTH + 1], "counts": [0, 1230]}}),
        ("mask", {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 7]}}),
        ("mask", {"segmentation": None}),
        ("empty", {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [1200]}}),
        ("record", {"segmentation": [["x", 0, 1, 1, 5, 5]]}),
        ("category", {"category_id": 99}),
        ("record", {"id": "eleven"}),
        ("record", {"category_id": []}),
    ],
)
def test_what_is_wrong_with_an_annotation_is_named_and_the_next_is_read(files: Files, kind: str, changes: dict[str, Any]):
    draft = files.add("instances", "i.json", coco([annotation(1, **changes), annotation(2)])).draft()
    assert kinds(draft) == [kind]
    assert [each.segment_id for each in draft.objects] == [2]


def test_a_number_twice_is_a_fault_in_one_file_and_the_same_object_in_two(files: Files):
    twice = [annotation(1), annotation(1)]
    draft = files.add("instances", "i.json", coco(twice)).add("instances", "j.json", coco([annotation(1)])).draft()
    assert draft.faults == ["duplicate id: i: record 1: annotation 1 occurs twice in the file"]
    assert [each.segment_id for each in draft.objects] == [1]


def test_two_files_that_give_one_number_to_different_objects_disagree(files: Files):
    other = annotation(1, segmentation=[[20, 0, 40, 0, 40, 30, 20, 30]])
    draft = files.add("instances", "i.json", coco([annotation(1)])).add("instances", "j.json", coco([other])).draft()
    assert kinds(draft) == ["duplicate id"]


def test_annotations_drawn_on_another_size_are_refused(files: Files):
    turned = [{"id": 5, "file_name": NAME, "width": HEIGHT, "height": WIDTH}]
    assert kinds(files.add("instances", "i.json", coco([annotation(1)], images=turned)).draft()) == ["size"]


def test_panoptic_segments_keep_their_ids_and_step_aside_for_instances(files: Files):
    ids_HW = np.where(left_half(), 1, 70_000)
    segments = [{"id": 1, "category_id": 1}, {"id": 70_000, "category_id": 7}, {"id": 3, "category_id": 7}]
    right = annotation(1, segmentation=[[20, 0, 40, 0, 40, 30, 20, 30]])
    draft = panoptic(files, segments, ids_HW).add("instances", "i.json", coco([right])).draft()
    found = [(s.segment_id, s.category, s.is_thing, s.source) for s in draft.objects]
    assert found == [(1, "cat", True, "instances"), (2, "cat", True, "panoptic"), (70_000, "sky", False, "panoptic")]
    np.testing.assert_array_equal(draft.objects[1].rle.mask(), left_half())
    assert draft.faults == ["empty: panoptic: segment 3 of 5.png: no pixel of its PNG has this id"]


def test_a_png_that_is_missing_or_climbs_out_is_a_fault_of_each_segment(files: Files):
    record = {"image_id": 5, "file_name": "../5.png", "segments_info": [{"id": 1, "category_id": 1}]}
    lacking = record | {"file_name": "6.png", "segments_info": [{"id": 2, "category_id": 1}]}
    draft = files.add("panoptic", "panoptic.json", coco([record, lacking])).draft()
    assert kinds(draft) == ["mask", "mask"]
    assert "climbs out" in draft.faults[0]


# -- language ----------------------------------------------------------------------------------------------------------


def test_references_of_refcoco_and_grefcoco(files: Files):
    said = [reference(1, "Left cat", "the cat", split="testA"), reference(1, "a cat")]
    gres = [reference([1, 2], "both"), reference([-1], "no dog") | {"no_target": True}, reference(-1, "no cow")]
    files.add("instances", "i.json", coco([annotation(1), annotation(2)]))
    draft = files.add("refs", "refs(unc).p", said, name="refcoco").add("refs", "grefs.json", gres).draft()
    assert not draft.faults
    assert {said.reference for said in draft.expressions} == {3}
    assert [replace(said, levels=[], reference=None) for said in draft.expressions] == [
        Expression("Left cat", [1], "evaluation", "refcoco/testA"),
        Expression("the cat", [1], "evaluation", "refcoco/testA"),
        Expression("a cat", [1], "train", "refcoco/train"),
        Expression("both", [1, 2], "train", "grefs/train"),
        Expression("no dog", [], "train", "grefs/train"),
        Expression("no cow", [], "train", "grefs/train"),
    ]


def test_references_that_cannot_be_used_are_named(files: Files):
    refs = [
        reference(9, "of an unknown annotation"),
        reference([1, 9], "of one unknown annotation"),
        reference(1, "  "),
        reference(1),
        reference(1, "of no split", split=None),
        {"image_id": 5},
    ]
    draft = files.add("instances", "i.json", coco([annotation(1)])).add("refs", "refs.p", refs).draft()
    assert kinds(draft) == ["unknown object", "unknown object", "text", "text", "split", "record"]
    assert not draft.expressions


def test_descriptions_follow_the_ids_of_the_panoptic_file(files: Files):
    described = [{"id": 70_000, "description": "a blue sky"}, {"id": 8, "description": "nobody"}]
    record = {"image_id": 5, "file_name": "5.png", "segments_info": described}
    panoptic(files, [{"id": 70_000, "category_id": 7}], np.where(left_half(), 0, 70_000))
    draft = files.add("captions", "pix2cap.json", coco([record]), split="train").draft()
    assert draft.captions == [Caption(70_000, "a blue sky", "train", "pix2cap")]
    assert kinds(draft) == ["unknown object"]


def test_bare_masks_stand_for_the_object_they_equal_or_become_one(files: Files):
    corner_HW = np.zeros((HEIGHT, WIDTH), bool)
    corner_HW[:3, :3] = True
    left, corner = rle(left_half()), rle(corner_HW)
    uncompressed = {"size": [HEIGHT, WIDTH], "counts": [0, 300, 0, 300, 600]}
    files.add("instances", "i.json", coco([annotation(11)]))
    captions = [{"segmentation": left, "caption": "one"}, {"segmentation": corner, "caption": "two"}]
    files.add("detailed", "d.json", [{"image_name": NAME, "object_annotations": captions}], split="evaluation")
    asked = [{"object": uncompressed, "question": "Which? A. x B. y", "answer": "A. x"}]
    files.add("choices", "m.json", [{"image_name": NAME, "mcqs": asked}], split="evaluation")
    tags = {"<object1>": corner, "<object2>": left}
    vres = {"image_name": NAME, "question": "what is left of <object1>?", "answer": "<object2>", "segmentations": tags}
    draft = files.add("references", "v.json", [vres], split="train").draft()

    assert not draft.faults
    assert [(s.segment_id, s.category, s.source) for s in draft.objects] == [(11, "cat", "instances"), (12, "", "d")]
    assert draft.captions == [Caption(11, "one", "evaluation", "d"), Caption(12, "two", "evaluation", "d")]
    assert draft.choices == [Choice(11, "Which? A. x B. y", "A. x", "evaluation", "m")]
    tagged = [Tag("<object1>", 12), Tag("<object2>", 11)]
    assert draft.references == [Reference("what is left of <object1>?", "<object2>", tagged, "train", "v")]


@pytest.mark.parametrize("said", ["[SEG]", "<Prompt3>", "<|im_end|>", "</vision>", "<p>", "</p>"])
def test_a_text_that_says_what_has_a_meaning_of_its_own_is_a_fault(files: Files, said: str):
    caption = {"segmentation": rle(left_half()), "caption": f"a cat {said} on a mat"}
    files.add("detailed", "d.json", [{"image_name": NAME, "object_annotations": [caption]}], split="evaluation")
    draft = files.draft()
    assert not draft.captions
    (fault,) = draft.faults
    assert fault.startswith("text: d: ")
    assert f"it says {said}" in fault


# -- files and pickles -------------------------------------------------------------------------------------------------


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)

    def __init__(self, path: str):
        self.path = path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_named_and_not_executed(tmp_path: Path, protocol: int):
    victim = tmp_path / "made by the pickle"
    data = pickle.dumps([reference(1, "a cat"), Malicious(str(victim))], protocol)
    with pytest.raises(DataError, match=r"refs\.p: the pickle wants to import (posix|os)\.mkdir"):
        read_pickle(data, "refs.p")
    assert not victim.exists()


def test_pickles_of_python_2_keep_their_letters():
    utf8, latin1 = b"(lp0\nS'caf\\xc3\\xa9'\np1\na.", b"(lp0\nS'caf\\xe9'\np1\na."
    assert read_pickle(utf8, "refs.p") == read_pickle(latin1, "refs.p") == ["café"]


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps([1, 2, 3])[:-3], b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f."])
def test_a_damaged_pickle_is_named(data: bytes):
    with pytest.raises(DataError, match=r"refs\.p: the pickle cannot be read"):
        read_pickle(data, "refs.p")


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not valid"), ("[" * 200_000, "not valid"), ("{}", "no list"), ('{"images": [3]}', "malformed")]
)
def test_a_file_that_is_no_annotation_file_is_named(files: Files, text: str, said: str):
    files.add("instances", "i.json", {})
    (files.folder / "i.json").write_text(text)
    with pytest.raises(DataError, match=rf"i\.json: .*{said}"):
        files.draft()


def test_config_wants_splits_and_names_that_tell_files_apart(files: Files):
    files.add("choices", "mcq.json", [])
    with pytest.raises(ConfigError, match="say the split"):
        files.source()
    twins = Files(files.folder).add("refs", "a/refs(unc).p", []).add("refs", "b/refs(unc).p", [])
    with pytest.raises(ConfigError, match="a name of its own"):
        twins.source()


def test_paths_are_no_identity_and_contents_are(tmp_path: Path):
    sources = []
    for name, letter in (("one", "a"), ("two", "a"), ("three", "b")):
        (tmp_path / name).mkdir()
        sources.append(Files(tmp_path / name).add("instances", "i.json", coco([], note=letter)).source())
    one, two, three = sources
    assert one.identity() == two.identity()
    assert annotation_digests(one) == annotation_digests(two) != annotation_digests(three)


def test_a_listing_names_every_picture_once(tmp_path: Path):
    for name in ("x/2.jpg", "x/sub/1.PNG", "x/notes.txt", "y/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "x" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    x, y = (ImageFolder(path=str(tmp_path / name)) for name in "xy")
    assert [(file.name, file.size) for file in listing([x])] == [("2.jpg", 7), ("caf\\xe9.jpg", 0), ("sub/1.PNG", 11)]
    with pytest.raises(ConfigError, match=r"two pictures are called '2\.jpg'"):
        listing([x, y])
    both = listing([x, y.model_copy(update={"prefix": "other/"})])
    assert [file.name for file in both][2] == "other/2.jpg"
    assert images_digest(both) != images_digest(listing([x]))
    with pytest.raises(ConfigError, match="no such folder"):
        listing([ImageFolder(path=str(tmp_path / "nowhere"))])
