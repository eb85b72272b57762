"""Dialogues in which every object has a mask: GLaMM's grounded captions and the classes of COCO panoptic, each read for one
picture of 40 x 30 pixels, and what goes wrong in them."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image

from schemas.annotations import Expression, Tag
from schemas.dialogue import Turn
from schemas.errors import ConfigError, DataError
from stages import phrases
from stages.sources.classes import flatten_segments
from stages.sources.coco import Lists
from stages.sources.config import SourceFile
from stages.sources.draft import Draft
from stages.sources.glamm import add_caption, flatten_caption
from stages.sources.pages import NOWHERE, pages
from tests.stages.annotated import (
    HEIGHT,
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
    rle,
)

# -- grounded captions -------------------------------------------------------------------------------------------------


def grounded(files: Files, caption: Any, *refs: tuple[Any, Any]) -> Draft:
    told = [{"sentence": sentence, "bbox": [0, 0, 1, 1], "segmentation": segmentation} for sentence, segmentation in refs]
    return captioned(files, [{"17": {"img_file_name": NAME, "caption": caption, "refs": told}}])


def captioned(files: Files, records: Any) -> Draft:
    return files.add("grounded", "gcg.json", records, split="train").draft()


def test_a_grounded_caption_has_a_tag_behind_each_phrase(files: Files):
    files.add("instances", "i.json", coco([annotation(11)]))
    draft = grounded(files, "A Cat beside a woman, a man", ("a man", [RIGHT]), ("a cat", [LEFT]))
    assert not draft.faults
    (told,) = draft.conversations
    assert told.turns == [Turn("", "<p> a cat </p> <object0> beside a woman, <p> a man </p> <object1>")]
    assert (told.pointed, told.segmented) == ([], [Tag("<object0>", 11), Tag("<object1>", 12)])
    np.testing.assert_array_equal(draft.objects[1].rle.mask(), ~left_half())


def test_phrases_that_are_not_there_or_lie_across_others_are_named_and_left_out(files: Files):
    refs = [("the old cat", [LEFT]), ("cat on a mat", [RIGHT]), ("a mat", [RIGHT]), ("old", [LEFT]), ("ma", [LEFT])]
    draft = grounded(files, "The old cat on a mat", *refs)
    assert draft.conversations[0].turns[0].answer == "<p> the old cat </p> <object0> on <p> a mat </p> <object1>"
    assert kinds(draft) == ["phrase"] * 3
    assert [fault.rpartition(": ")[2] for fault in draft.faults] == [
        "it does not say 'ma'",
        "letters 4 to 7 lie across another phrase",
        "letters 8 to 20 lie across another phrase",
    ]


@pytest.mark.parametrize(
    ("named", "caption", "refs"),
    [
        (["record"], None, [("a cat", [LEFT])]),
        (["text"], " ", [("a cat", [LEFT])]),
        (["text"], "a <object0> cat", [("cat", [LEFT])]),
        (["text"], "a <p> cat", [("cat", [LEFT])]),
        (["text", "phrase"], "a cat", [(5, [LEFT])]),
        (["phrase"], "a cat", []),
        (["outside", "phrase"], "a cat", [("cat", [[50, 5, 60, 5, 60, 9, 50, 9]])]),
        (["mask", "phrase"], "a cat", [("cat", [[0, 0, 5, 5]])]),
        (["mask", "phrase"], "a cat", [("cat", None)]),
        (["record", "phrase"], "a cat", [("cat", [["x", 0, 1, 1, 5, 5]])]),
    ],
)
def test_what_is_wrong_with_a_grounded_caption_is_named(files: Files, named: list[str], caption: Any, refs: list[Any]):
    draft = grounded(files, caption, *refs)
    assert kinds(draft) == named
    assert not draft.conversations


def test_of_phrases_that_begin_together_the_longer_is_tagged(files: Files):
    draft = grounded(files, "a fat cat on a mat", ("a fat", [LEFT]), ("a fat cat", [RIGHT]), ("a mat", [LEFT]))
    assert draft.conversations[0].turns[0].answer == "<p> a fat cat </p> <object0> on <p> a mat </p> <object1>"
    assert [fault.rpartition(": ")[2] for fault in draft.faults] == ["letters 0 to 5 lie across another phrase"]


def test_a_phrase_whose_mask_cannot_be_used_is_left_out(files: Files):
    draft = grounded(files, "a cat and a dog", ("a cat", [[0, 0, 5, 5]]), ("a dog", [RIGHT]))
    assert kinds(draft) == ["mask"]
    assert draft.conversations[0].turns[0].answer == "a cat and <p> a dog </p> <object0>"


def placed(start: Any, end: Any, *masks: Any) -> dict[str, Any]:
    return {"token_positives": [start, end], "rle_masks": list(masks)}


def caption_of(text: Any, groundings: Any, **changes: Any) -> dict[str, Any]:
    size = {"file_name": NAME, "image_id": 9, "width": WIDTH, "height": HEIGHT}
    return size | {"caption": text, "groundings": groundings} | changes


def test_phrases_with_their_letters_keep_their_case_and_their_masks_are_joined(files: Files):
    corner = np.zeros((HEIGHT, WIDTH), bool)
    corner[:3, 20:24] = True
    groundings = {
        "Two cats": placed(0, 8, rle(left_half()), rle(corner)),
        "nobody": None,
        "sky": placed(18, 22, rle(~left_half())),
    }
    draft = captioned(files, [caption_of('"Two cats under the sky"', groundings)])
    assert not draft.faults
    (told,) = draft.conversations
    assert told.turns == [Turn("", "<p> Two cats </p> <object0> under the <p> sky </p> <object1>")]
    assert [each.rle.area for each in draft.objects] == [600 + 12, 600]


@pytest.mark.parametrize(
    ("named", "record"),
    [
        (["phrase", "phrase"], caption_of("A cat", {"cat": placed(2, 6, rle(left_half()))})),
        (["phrase", "phrase"], caption_of("A cat", {"cat": placed(-1, 5, rle(left_half()))})),
        (["phrase", "phrase"], caption_of("A cat", {"cat": placed(5, 2, rle(left_half()))})),
        (["phrase", "phrase"], caption_of("A cat", {"cat": placed(1, 2, rle(left_half()))})),
        (["mask", "phrase"], caption_of("A cat", {"cat": placed(2, 5)})),
        (["mask", "phrase"], caption_of("A cat", {"cat": placed(2, 5) | {"rle_masks": "all"}})),
        (["record", "phrase"], caption_of("A cat", {"cat": placed(2, "5", rle(left_half()))})),
        (["record", "phrase"], caption_of("A cat", {"cat": {"token_positives": [2], "rle_masks": []}})),
        (["phrase", "phrase"], caption_of("A cat", {"cat": {"rle_masks": []}})),
        (["phrase", "phrase"], caption_of("A cat", {"cat": {}})),
        (["phrase", "phrase"], caption_of("A cat", {"cat": placed(2, 5, rle(left_half())) | {"token_positives": None}})),
        (["phrase", "phrase"], caption_of("A cat", {"dog": placed(2, 5, rle(left_half()))})),
        (["phrase", "phrase"], caption_of('"A cat', {"cat": placed(1, 4, rle(left_half()))})),
        (["record"], caption_of("A cat", ["cat"])),
        (["record"], caption_of(None, {})),
        (["size"], caption_of("A cat", {"cat": placed(2, 5, rle(left_half()))}, width=WIDTH + 1)),
    ],
)
def test_what_is_wrong_with_phrases_that_have_letters_is_named(files: Files, named: list[str], record: Any):
    draft = captioned(files, [record])
    assert kinds(draft) == named
    assert not draft.conversations


@pytest.mark.parametrize("first", [0, 2])
def test_letters_are_counted_with_what_stands_around_the_caption_or_without(files: Files, first: int):
    draft = captioned(files, [caption_of('" A cat sleeps."', {"a CAT": placed(first, first + 5, rle(left_half()))})])
    assert not draft.faults
    assert draft.conversations[0].turns == [Turn("", "<p> A cat </p> <object0> sleeps.")]


def test_a_phrase_that_is_said_twice_of_two_objects_stands_at_both_places(files: Files):
    draft = grounded(files, "A man and a man", ("a man", [LEFT]), ("a man", [RIGHT]), ("a man", [LEFT]))
    assert kinds(draft) == ["phrase"]
    assert draft.conversations[0].turns[0].answer == "<p> a man </p> <object0> and <p> a man </p> <object1>"


def test_many_masks_of_a_phrase_take_up_the_memory_of_few():
    whole = np.ones((500, 1000), bool)
    said = caption_of("A cat", {"a cat": placed(0, 5, *[rle(whole)] * 40)}, width=1000, height=500)
    draft, file = Draft(1000, 500), SourceFile("grounded", 0, "gcg", "gcg.json", "train")
    (statement,) = flatten_caption(said)
    tracemalloc.start()
    try:
        add_caption(draft, file, statement)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert draft.objects[0].rle.area == whole.size
    assert peak < 8 * whole.nbytes


def flickr(*phrases_of: dict[str, Any], caption: str = "A cat under the sky", **changes: Any) -> dict[str, Any]:
    images = [{"id": 5, "file_name": NAME, "width": WIDTH, "height": HEIGHT, "caption": caption}]
    return {
        "images": images,
        "annotations": [{"image_id": 5, "bbox": [0, 0, 9, 9], "area": 81} | each for each in phrases_of],
    } | changes


def test_captions_of_flickr_take_their_phrases_from_the_annotations(files: Files):
    cat = {"tokens_positive": [[0, 5], [9, 12]], "sam_mask": rle(left_half())}
    sky = {"tokens_positive": [[12, 19]], "sam_mask": rle(~left_half())}
    draft = captioned(files, flickr(sky, cat, sky | {"ignore": 1}))
    assert not draft.faults
    assert draft.conversations[0].turns == [Turn("", "<p> A cat </p> <object0> under <p> the sky </p> <object1>")]
    (page,) = pages(files.source().files()[0])
    assert page.ids == []  # its numbers are not COCO's


@pytest.mark.parametrize(
    ("named", "data"),
    [
        (["text"], flickr(caption="A cat")),
        (["phrase"], flickr()),
        (["phrase", "phrase"], flickr({"tokens_positive": []})),
        (["mask", "phrase"], flickr({"tokens_positive": [[0, 5]]})),
    ],
)
def test_what_is_wrong_with_a_caption_of_flickr_is_named(files: Files, named: list[str], data: Any):
    assert kinds(captioned(files, data)) == named


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("phrase", {"tokens_positive": []}),
        ("phrase", {"tokens_positive": {}}),
        ("phrase", {"tokens_positive": None}),
        ("phrase", {"sam_mask": rle(~left_half())}),
        ("mask", {"tokens_positive": [[12, 19]]}),
    ],
)
def test_a_phrase_of_flickr_without_a_place_or_a_mask_leaves_the_others(files: Files, kind: str, lacking: dict[str, Any]):
    cat = {"tokens_positive": [[0, 5]], "sam_mask": rle(left_half())}
    draft = captioned(files, flickr(cat, lacking))
    assert kinds(draft) == [kind]
    assert draft.conversations[0].turns == [Turn("", "<p> A cat </p> <object0> under the sky")]


@pytest.mark.parametrize("kind", ["sentence", "segmentation"])
def test_a_reference_that_lacks_something_leaves_the_others(files: Files, kind: str):
    refs = [{"sentence": "a cat", "segmentation": [LEFT]}, {"sentence": "a mat", "segmentation": [RIGHT]}]
    del refs[1][kind]
    draft = captioned(files, [{"17": {"img_file_name": NAME, "caption": "A cat on a mat", "refs": refs}}])
    assert kinds(draft) == [{"sentence": "text", "segmentation": "mask"}[kind]]
    assert draft.conversations[0].turns == [Turn("", "<p> a cat </p> <object0> on a mat")]


@pytest.mark.parametrize(("caption", "place"), [("  A cat sleeps", [2, 7]), ('"A cat" sleeps', [1, 6])])
def test_letters_of_flickr_are_counted_in_the_caption_as_it_is(files: Files, caption: str, place: list[int]):
    draft = captioned(files, flickr({"tokens_positive": [place], "sam_mask": rle(left_half())}, caption=caption))
    assert not draft.faults
    assert "<p> A cat </p> <object0>" in draft.conversations[0].turns[0].answer


def test_annotations_of_flickr_find_their_picture_by_its_number_however_it_is_written(files: Files):
    cat = {"tokens_positive": [[0, 5]], "sam_mask": rle(left_half())}
    files.add("grounded", "gcg.json", flickr(cat | {"image_id": "5"}, cat | {"image_id": 6}), split="train")
    told, lost = pages(files.source().files()[0])
    assert len(told.statements[0]["phrases"]) == 1
    assert (lost.address, lost.statements[0]["fault"]) == (NOWHERE, ("unknown picture", "the file lists no picture 6"))


@pytest.mark.parametrize("data", [{}, flickr(images=None), flickr(annotations=[5])])
def test_a_file_of_flickr_of_another_form_is_named(files: Files, data: Any):
    with pytest.raises(DataError, match=r"gcg\.json: .*malformed"):
        captioned(files, data)


@pytest.mark.parametrize("record", [{}, {"1": {}, "2": {}}, {"1": []}, [], "17"])
def test_a_grounded_record_of_another_form_belongs_nowhere(files: Files, record: Any):
    files.add("grounded", "gcg.json", [record], split="train")
    (page,) = pages(files.source().files()[0])
    assert page.address == ("none", "")
    assert page.statements[0]["fault"][0] == "record"


# -- classes -----------------------------------------------------------------------------------------------------------

NAMES = ["cat", "sky-other-merged", "tree-merged", "floor-wood", *(f"thing {k}" for k in range(12))]
LISTED = [{"id": k, "name": name, "isthing": int(k not in (1, 2, 3))} for k, name in enumerate(NAMES)]


def classed(files: Files, kind: str, *segments: tuple[Any, Any], **config: Any) -> Draft:
    """Segments of the first file are four columns wide; their numbers run from right to left."""
    (files.folder / "panoptic").mkdir()
    ids_HW = np.tile(np.arange(WIDTH, dtype=np.uint8)[::-1] // 4, (HEIGHT, 1))
    Image.fromarray(np.stack([ids_HW, 0 * ids_HW, 0 * ids_HW], axis=-1)).save(files.folder / "panoptic" / "5.png")
    told = [{"id": number, "category_id": category} for number, category in segments]
    crowd = {"id": 9, "category_id": 0, "iscrowd": 1}
    data = coco([{"image_id": 5, "file_name": "5.png", "segments_info": [*told, crowd]}], categories=LISTED)
    files.add("panoptic", "panoptic.json", data)
    return files.add(kind, "panoptic.json", data, **{"split": "train", "name": kind} | config).draft()


def test_all_segments_of_a_class_are_asked_for_together(files: Files):
    draft = classed(files, "semantic", (3, 0), (1, 0), (5, 1))
    assert not draft.faults
    assert draft.expressions == [
        Expression("all the cat", [3, 1], "train", "semantic"),
        Expression("all the sky", [5], "train", "semantic"),
    ]


def test_things_are_segmented_one_by_one_from_left_to_right_and_stuff_as_it_is(files: Files):
    things, stuff = classed(files, "instance", (1, 0), (3, 0), (5, 3), split="evaluation").references
    assert things.question == f"{phrases.SEGMENT[0].format('cat')} {phrases.INSTANCES}"
    assert things.answer == "cat-1 <object0> cat-2 <object1>."
    assert things.tags == [Tag("<object0>", 3), Tag("<object1>", 1)]
    assert stuff.question == f"{phrases.SEGMENT[0].format('floor wood')} {phrases.SEMANTIC}"
    assert (stuff.answer, stuff.tags) == ("floor wood <object0>.", [Tag("<object0>", 5)])


def test_a_class_is_to_be_chosen_among_others(files: Files):
    draft = classed(files, "classified", *((k, k % 4) for k in range(1, 9)), split="evaluation")
    assert not draft.faults
    right = {0: "cat", 1: "sky", 2: "tree", 3: "floor wood"}
    for number, asked in enumerate(draft.references, start=1):
        assert asked.tags == [Tag("<object0>", number)]
        choices = asked.question.removeprefix("What is <object0>? Choose among: ").removesuffix(".").split(", ")
        assert choices[-1] == "others"
        assert len(set(choices)) == len(choices)
        name = right[number % 4]
        assert asked.answer == f"<object0>: {name if name in choices else 'others'}"
        assert len(choices) == (12 if name in choices else 11)
    assert len({asked.question for asked in draft.references}) > 1


def test_the_right_class_is_lacking_now_and_then():
    listed = Lists.of({"categories": LISTED})
    file = SourceFile("classified", 0, "c", "c.json", "train")
    segments = [{"id": number, "category_id": 0} for number in range(1000)]
    told = flatten_segments(file, {"file_name": "5.png", "segments_info": segments}, listed)
    assert 30 < sum(statement["lacks"] for statement in told) < 70


@pytest.mark.parametrize("kind", ["semantic", "instance", "classified"])
def test_what_is_wrong_with_a_class_is_named_and_the_next_is_read(files: Files, kind: str):
    draft = classed(files, kind, (1, 99), (77, 0), (3, 2))
    assert sorted(fault.split(":")[0] for fault in draft.faults if f": {kind}: " in fault) == ["category", "unknown object"]
    assert [each.source for each in (*draft.expressions, *draft.references)] == [kind]


@pytest.mark.parametrize("segments", [None, 5, ["one"], [{"id": 1}], [{"id": 1, "category_id": []}]])
@pytest.mark.parametrize("kind", ["semantic", "instance", "classified"])
def test_a_record_of_classes_of_another_form_is_a_fault(files: Files, kind: str, segments: Any):
    record = {"image_id": 5, "file_name": "5.png", "segments_info": segments}
    listed = coco([record], categories=LISTED)
    files.add("panoptic", "c.json", listed, name="segments")
    assert kinds(files.add(kind, "c.json", listed, split="train").draft()) == ["record", "record"]


def test_one_class_is_no_choice(files: Files):
    panoptic(files, [{"id": 1, "category_id": 1}], np.where(left_half(), 1, 0))
    data = json.loads((files.folder / "panoptic.json").read_text()) | {"categories": LISTED[1:2]}
    files.add("classified", "panoptic.json", data, split="train", name="classes")
    assert files.draft().faults == ["category: classes: class 1 of 5.png: there is no other class to choose among"]


@pytest.mark.parametrize("kind", ["semantic", "instance", "classified"])
def test_classes_are_of_a_panoptic_file_of_the_source(files: Files, kind: str):
    files.add("panoptic", "panoptic.json", coco([])).add(kind, "other.json", coco([]), split="train")
    with pytest.raises(ConfigError, match=rf"{kind}: .*other\.json is not among panoptic"):
        files.source()
