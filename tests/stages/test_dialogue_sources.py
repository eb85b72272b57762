"""Conversations, ReasonSeg, short captions and what Pix2Cap describes, each read for one picture of 40 x 30 pixels, and what
goes wrong in them."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from schemas.annotations import Caption, Conversation, Expression, Reference, Tag
from schemas.dialogue import Turn
from schemas.errors import ConfigError, DataError
from schemas.regions import Rle
from stages import phrases
from stages.sources.config import CocoSource, SourceFile
from stages.sources.draft import Draft
from stages.sources.listing import annotation_digests
from stages.sources.pages import TEXT_ALONE, pages, place
from tests.stages.test_sources import (
    HEIGHT,
    LEFT,
    NAME,
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

RIGHT = [20, 0, 40, 0, 40, 30, 20, 30]
HOSTILE = "[SEG]", "<p> a cat </p>", "<object0>", "<Prompt3>", "<|im_end|>"


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


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


# -- ReasonSeg ---------------------------------------------------------------------------------------------------------


def reasoning(files: Files, *records: Any, split: str = "train") -> Draft:
    """The draft of `a.png`, of which there are several records: each folder has one."""
    for number, record in enumerate(records):
        folder = files.folder / f"reason{number}"
        folder.mkdir()
        (folder / "a.json").write_bytes(record if isinstance(record, bytes) else json.dumps(record).encode())
        place = {"path": str(folder), "name": f"reason{number}", "split": split, "names": {"a.jpg": NAME}}
        files.fields.setdefault("reasoning", []).append(place)
    return files.draft()


def asking(*shapes: tuple[Any, Any], text: Any = ("the eager one",), is_sentence: bool = False) -> dict[str, Any]:
    drawn = [{"label": label, "points": points} for label, points in shapes]
    return {"shapes": drawn, "text": text, "is_sentence": is_sentence}


TARGET = ("target", box(0, 0, 19, 29))


def test_a_target_and_what_is_to_be_ignored_are_kept_apart(files: Files):
    draft = reasoning(files, asking(TARGET, ("Ignore this", box(5, 5, 9, 9)), ("flag", [[1, 1]])))
    assert not draft.faults
    (asked,) = draft.references
    question = phrases.REASON_WHAT.format("the eager one")
    assert asked == Reference(question, "<object0>", [Tag("<object0>", 1)], "train", "reason0")
    target, ignored = draft.objects
    assert (target.segment_id, target.is_crowd, target.rle.area) == (1, False, 20 * 30 - 25)
    assert (ignored.category, ignored.is_crowd, ignored.rle.area) == ("ignored", True, 25)
    assert not (target.rle.mask() & ignored.rle.mask()).any()


def test_a_smaller_outline_stands_on_a_larger_and_of_two_alike_the_first(files: Files):
    inside = asking(("ignore", box(0, 0, 39, 29)), ("target", box(2, 2, 4, 3)))
    alike = asking(("target", box(0, 0, 3, 3)), ("ignore", box(2, 0, 5, 3)))
    draft = reasoning(files, inside, alike)
    areas = [(each.is_crowd, each.rle.area) for each in draft.objects]
    assert areas == [(False, 3 * 2), (True, 40 * 30 - 6), (False, 16), (True, 8)]


def test_sentences_are_asked_as_they_are_and_evaluation_asks_the_first(files: Files):
    record = asking(TARGET, text=["Which of them sleeps?", "Who is tired?"], is_sentence=True)
    assert [each.question for each in reasoning(files, record).references] == [
        "Which of them sleeps? Output a segmentation mask.",
        "Who is tired? Output a segmentation mask.",
    ]
    files.fields["reasoning"][0]["split"] = "evaluation"
    (asked,) = files.draft().references
    assert (asked.question, asked.split) == ("Which of them sleeps? Output a segmentation mask.", "evaluation")


def test_a_target_may_be_empty_and_what_is_outside_is_not_drawn(files: Files):
    record = asking(("target", box(50, 0, 60, 5)), ("ignore", box(0, -9, 9, -1)), ("target", box(-5, 25, 1, 99)))
    draft = reasoning(files, asking(("ignore", box(0, 0, 9, 9))), record)
    assert not draft.faults
    assert [each.tags for each in draft.references] == [[Tag("<object0>", 1)], [Tag("<object0>", 3)]]
    assert [each.rle.area for each in draft.objects] == [0, 100, 2 * 5]


def test_equal_masks_of_ignored_regions_are_kept_once(files: Files):
    ignored = ("ignore", box(5, 5, 9, 9))
    draft = reasoning(files, asking(TARGET, ignored), asking(TARGET, ignored))
    assert [each.is_crowd for each in draft.objects] == [False, True]
    assert draft.objects[1].rle == Rle.of(draft.objects[1].rle.mask())


def test_a_file_of_another_encoding_is_read_as_its_authors_do(files: Files):
    record = json.dumps(asking(TARGET, text=["the caf?"])).encode().replace(b"?", b"\xe9")
    assert "the café" in reasoning(files, record).references[0].question


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("record", ["nothing"]),
        ("record", {"shapes": []}),
        ("record", asking((5, box(0, 0, 9, 9)))),
        ("record", asking(("target", "everywhere"))),
        ("record", asking(("target", [[0, 0], [5], [5, 5]]))),
        ("record", asking(("target", [["a", "b"]]))),
        ("record", asking(("target", [[10**400, 0], [5, 5], [0, 5]]))),
        ("mask", asking(("target", [[float("nan"), 0], [5, 5], [0, 5]]))),
        ("mask", asking(("target", [[float("inf"), 0], [5, 5], [0, 5]]))),
        ("mask", asking(("target", [[0, 0, 0], [5, 5, 5], [0, 5, 0]]))),
        ("mask", asking(("target", []))),
        ("text", asking(TARGET, text=[])),
        ("text", asking(TARGET, text="the eager one")),
        ("text", asking(TARGET, text=[5])),
        *(("text", asking(TARGET, text=[f"what {text} shows"])) for text in HOSTILE),
    ],
)
def test_what_is_wrong_with_a_reasoning_record_is_named(files: Files, kind: str, record: Any):
    draft = reasoning(files, record, asking(TARGET))
    assert kinds(draft) == [kind]
    assert [each.source for each in draft.references] == ["reason1"]


def test_outlines_far_out_cost_no_more_than_near_ones(files: Files):
    draft = reasoning(files, asking(("target", box(-1e12, -1e12, 1e12, 1e12))))
    assert draft.objects[0].rle.area == WIDTH * HEIGHT


def test_an_edge_to_a_corner_outside_is_drawn_as_on_a_larger_picture(files: Files):
    corners = [(-400, 15), (39, 0), (39, 29)]
    larger = Image.new("1", (WIDTH + 400, HEIGHT))
    ImageDraw.Draw(larger).polygon([(x + 400, y) for x, y in corners], fill=1, outline=1)
    draft = reasoning(files, asking(("target", corners)))
    np.testing.assert_array_equal(draft.objects[0].rle.mask(), np.array(larger)[:, 400:])
    assert draft.objects[0].rle.area == pytest.approx(1084, rel=0.05)


@pytest.mark.parametrize("data", [b"{", b"[" * 200_000])
def test_a_reasoning_file_that_is_no_json_is_named(files: Files, data: bytes):
    with pytest.raises(DataError, match=r"reason0/a\.json: not valid JSON"):
        reasoning(files, data)


def test_a_folder_without_records_is_named_and_its_digest_is_of_what_they_say(files: Files):
    files.fields["reasoning"] = [{"path": str(files.folder / "empty"), "split": "train"}]
    with pytest.raises(ConfigError, match="no JSON file"):
        annotation_digests(files.source())
    (files.folder / "empty").mkdir()
    digests = []
    for letter in "ab":
        (files.folder / "empty" / "x.json").write_text(json.dumps(asking(text=[letter])))
        digests.append(annotation_digests(files.source())["empty"])
    assert digests[0] != digests[1]


def test_the_name_of_a_file_that_is_not_utf_8_stands_in_a_line_that_can_be_stored(tmp_path: Path):
    folder = tmp_path / "reason"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.json")).write_text(json.dumps(asking(TARGET, text=[5])))
    place_of = {"path": str(folder), "split": "train", "names": {"caf\\xe9.jpg": NAME}}
    source = CocoSource.model_validate({"images": [str(tmp_path)], "reasoning": [place_of]})
    draft = Draft(WIDTH, HEIGHT)
    (file,) = source.files()
    (page,) = pages(file)
    place(draft, file, page)
    (fault,) = draft.faults
    assert fault.encode() == b"text: reason: question 0 of caf?: it has no text"


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
