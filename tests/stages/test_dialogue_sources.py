"""Conversations, short captions and what Pix2Cap describes, each read for one picture of 40 x 30 pixels, and what
goes wrong in them."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from schemas.annotations import Caption, Conversation, Expression, Tag
from schemas.dialogue import Turn
from schemas.errors import ConfigError
from schemas.regions import Rle
from stages.sources.config import CocoSource, SourceFile
from stages.sources.draft import Draft
from stages.sources.pages import TEXT_ALONE, pages
from tests.stages.annotated import (
    HEIGHT,
    HOSTILE,
    LEFT,
    NAME,
    RIGHT,
    WIDTH,
    Files,
    annotation,
    coco,
    kinds,
    left_half,
    panoptic,
    reference,
    rle,
)


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    """The outline of a box whose last column and row are `x1` and `y1`."""
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


# -- conversations -----------------------------------------------------------------------------------------------------


def said(*turns: tuple[Any, Any], **changes: Any) -> dict[str, Any]:
    return {"id": "7", "image": NAME, "conversations": [{"from": who, "value": text} for who, text in turns]} | changes


def conversing(files: Files, *records: Any, **config: Any) -> Draft:
    return files.add("conversations", "llava.json", list(records), **{"split": "train"} | config).draft()


ASKED = (("human", "<image>\nWhat is this?"), ("gpt", "A cat."))


def test_a_conversation_keeps_its_turns_in_order_and_loses_the_mark_of_its_picture(files: Files):
    talk = said(
        ("gpt", "Welcome."),
        ("human", "What is this?\n<image>"),
        ("gpt", "A cat. "),
        ("human", "And there?"),
        ("human", "In one word."),
        ("gpt", "Sky"),
        ("human", "Thanks"),
    )
    draft = conversing(files, talk)
    assert not draft.faults
    turns = [Turn("What is this?", "A cat."), Turn("And there?\nIn one word.", "Sky")]
    assert draft.conversations == [Conversation(turns, [], [], "train", "llava")]


@pytest.mark.parametrize("record", [{"id": "7"}, {"id": "7", "image": None}, {"id": "7", "image": ""}])
def test_text_alone_has_no_picture_and_nothing_of_it_is_kept(files: Files, record: dict[str, Any]):
    talk = {"conversations": [{"from": "human", "value": "Hello"}]} | record
    files.add("conversations", "llava.json", [talk, talk], split="train")
    (page,) = pages(files.source().files()[0])
    assert page.address == TEXT_ALONE
    assert page.statements == [{"what": "conversation 7"}] * 2


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("record", said(*ASKED, conversations=None)),
        ("record", said(*ASKED, conversations=["What?"])),
        ("record", said(("human", 5), ("gpt", "A cat."))),
        ("record", said(("system", "Be kind."), *ASKED)),
        ("text", said(("human", "What?"), ("gpt", ["A cat."]))),
        ("text", said(("human", "What?"), ("gpt", " "))),
        ("text", said(("human", "<image>"), ("gpt", "A cat."))),
        ("text", said(*ASKED, ("gpt", "It is asleep."))),
        ("text", said(("human", "What is this?"))),
        ("text", said()),
        *(("text", said(("human", "What?"), ("gpt", f"See {text} there."))) for text in HOSTILE),
        *(("text", said(("human", f"What is {text}?"), ("gpt", "A cat."))) for text in HOSTILE),
    ],
)
def test_what_is_wrong_with_a_conversation_is_named_and_the_next_is_read(files: Files, kind: str, record: dict[str, Any]):
    draft = conversing(files, record, said(*ASKED))
    assert kinds(draft) == [kind]
    assert [each.turns for each in draft.conversations] == [[Turn("What is this?", "A cat.")]]


@pytest.mark.parametrize("image", [["a.png", "b.png"], 5, {"name": "a.png"}])
@pytest.mark.parametrize("names", [{}, {"coco/": ""}])
def test_a_record_whose_picture_has_no_name_belongs_nowhere(files: Files, image: Any, names: dict[str, str]):
    files.add("conversations", "llava.json", [said(*ASKED, image=image)], split="train", names=names)
    (page,) = pages(files.source().files()[0])
    assert page.address == ("none", "")
    assert page.statements[0]["fault"][0] == "record"


def test_names_of_pictures_are_turned_into_those_of_the_pool():
    names = {"coco/": "c/", "coco/train2017/": "", "": "else/"}
    file = SourceFile("conversations", 0, "llava", "llava.json", "train", names=names)
    assert file.in_pool("coco/train2017/000000000009.jpg") == "000000000009.jpg"
    assert file.in_pool("coco/val/coco/1.jpg") == "c/val/coco/1.jpg"
    assert file.in_pool("../x.jpg") == "else/../x.jpg"


def test_a_file_says_its_split_where_its_records_have_none(files: Files):
    files.add("conversations", "llava.json", [])
    with pytest.raises(ConfigError, match="say the split"):
        files.source()


def test_pages_are_let_go_of_as_they_are_handed_on(files: Files):
    talk = [said(*ASKED, image=f"{number}.png") for number in range(4000)]
    files.add("conversations", "llava.json", talk, split="train")
    (file,) = files.source().files()
    tracemalloc.start()
    try:
        held = [tracemalloc.get_traced_memory()[0] for _ in pages(file)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held[-1] < 0.4 * held[0]
    assert peak < 1.6 * held[0]


# -- Osprey ------------------------------------------------------------------------------------------------------------


def outlined(*regions: Any, **more: Any) -> dict[str, Any]:
    size = {"file_name": NAME, "width": WIDTH, "height": HEIGHT}
    return size | {"annotation": [{"segmentation": each} for each in regions]} | more


def talking(*texts: str) -> dict[str, Any]:
    return {"conversations": [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]}


def osprey(files: Files, *records: Any) -> Draft:
    return files.add("osprey", "osprey.json", list(records), split="train").draft()


def test_a_conversation_about_regions_points_at_all_of_them(files: Files):
    regions = [[LEFT], rle(~left_half()), *([[0, 0, k, 0, k, k]] for k in range(10, 18))]
    draft = osprey(files, outlined(*regions, **talking("Is <region1> left of <regon10>?", "<Region1> is, region1 said")))
    assert not draft.faults
    (told,) = draft.conversations
    assert told.turns == [Turn("Is <object0> left of <object9>?", "<object0> is, region1 said")]
    assert told.pointed == [Tag(f"<object{k}>", k + 1) for k in range(10)]
    assert told.segmented == []


def test_descriptions_of_regions_are_captions_without_what_stands_before_them(files: Files):
    told = ["<region1>: A cat: asleep.", "A sky."]
    draft = osprey(files, outlined([LEFT], [RIGHT], description=told))
    assert not draft.faults
    assert draft.captions == [Caption(1, "A cat: asleep.", "train", "osprey"), Caption(2, "A sky.", "train", "osprey")]


def test_what_stands_before_a_colon_is_dropped_if_it_has_both_brackets(files: Files):
    draft = osprey(files, outlined([LEFT], description=["<Region1>: Lower < higher: a cat: wider > taller: asleep."]))
    assert [each.text for each in draft.captions] == ["Lower < higher: a cat: wider > taller: asleep."]


ASKED_OF_ONE = talking("What is <region1>?", "A cat.")


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("unknown object", outlined([LEFT], **talking("What is <region2>?", "A cat."))),
        ("unknown object", outlined([LEFT], **talking("What is <region0>?", "A cat."))),
        ("text", outlined(**ASKED_OF_ONE)),
        ("text", outlined([LEFT], **talking("What is <region1>?"))),
        ("text", outlined([LEFT], **talking("What is <object0>?", "A cat."))),
        ("text", outlined([LEFT], description=["<region1>:"])),
        ("mask", outlined([[0, 0, 5, 5]], **ASKED_OF_ONE)),
        ("outside", outlined([[50, 5, 60, 5, 60, 9, 50, 9]], **ASKED_OF_ONE)),
        ("size", outlined([LEFT], height=HEIGHT + 1, **ASKED_OF_ONE)),
        ("record", outlined([LEFT], description=[])),
        ("record", outlined([LEFT], description=[5])),
        ("record", outlined([LEFT], conversations=None)),
        ("record", outlined([LEFT], annotation=[[LEFT]], **ASKED_OF_ONE)),
    ],
)
def test_what_is_wrong_with_a_record_of_osprey_is_named(files: Files, kind: str, record: Any):
    draft = osprey(files, record, outlined([RIGHT], **ASKED_OF_ONE))
    assert kinds(draft) == [kind]
    assert [len(each.turns) for each in draft.conversations] == [1]
    assert [each.rle for each in draft.objects] == [Rle.of(~left_half())]


def test_nothing_is_said_of_a_crowd(files: Files):
    crowd = annotation(12, segmentation={"size": [HEIGHT, WIDTH], "counts": [0, 600, 600]}, iscrowd=1)
    files.add("instances", "i.json", coco([crowd]))
    draft = osprey(files, outlined([LEFT], **ASKED_OF_ONE))
    assert [(each.segment_id, each.is_crowd) for each in draft.objects] == [(12, True), (13, False)]
    assert draft.conversations[0].pointed == [Tag("<object0>", 13)]


# -- captions that are read in another way -----------------------------------------------------------------------------


def test_sentences_of_references_are_short_captions_of_the_one_object_they_name(files: Files):
    refs = [
        reference(1, "a cat", "the left one"),
        reference(2, "a dog", split="val"),
        reference([1, 2], "both"),
        reference(-1, "x"),
    ]
    files.add("instances", "i.json", coco([annotation(1), annotation(2, segmentation=[RIGHT])]))
    draft = files.add("short_captions", "refs.p", refs).draft()
    assert draft.captions == [
        Caption(1, "a cat", "train", "refs/train"),
        Caption(1, "the left one", "train", "refs/train"),
        Caption(2, "a dog", "evaluation", "refs/val"),
    ]
    assert kinds(draft) == ["not one object", "not one object"]


def test_what_is_described_can_be_asked_for(files: Files):
    told = [
        {"id": 70_000, "description": "A blue sky."},
        {"id": 70_000, "description": "Blue."},
        {"id": 8, "description": "Nobody."},
    ]
    record = {"image_id": 5, "file_name": "5.png", "segments_info": told}
    panoptic(files, [{"id": 70_000, "category_id": 7}], np.where(left_half(), 0, 70_000))
    files.add("captions", "pix2cap.json", coco([record]), split="train")
    draft = files.add("described", "pix2cap.json", coco([record]), split="train", name="masks").draft()
    assert draft.expressions == [Expression("A blue sky.", [70_000], "train", "masks")]
    assert draft.captions == [Caption(70_000, "A blue sky.", "train", "pix2cap")]
    assert kinds(draft) == ["text", "unknown object"] * 2


# -- identity ----------------------------------------------------------------------------------------------------------


def test_a_source_without_the_later_kinds_is_what_it_was_before_them():
    plain = CocoSource.model_validate({"images": ["a"]})
    first = {"kind", "images", "instances", "panoptic", "refs", "captions", "detailed", "choices", "references"}
    assert plain.identity().keys() == first
    talking = CocoSource.model_validate({"images": ["a"], "conversations": [{"path": "l.json", "split": "train"}]})
    assert talking.identity().keys() == first | {"conversations"}
