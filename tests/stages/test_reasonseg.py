"""ReasonSeg, read for one picture of 40 x 30 pixels, and what goes wrong in it."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from schemas.annotations import Reference, Tag
from schemas.errors import ConfigError, DataError
from schemas.regions import VOID
from stages import phrases
from stages.sources.config import CocoSource
from stages.sources.draft import Draft
from stages.sources.listing import annotation_digests
from stages.sources.pages import pages, place
from tests.stages.annotated import (
    HEIGHT,
    HOSTILE,
    NAME,
    WIDTH,
    Files,
    kinds,
)


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    """The outline of a box whose last column and row are `x1` and `y1`."""
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


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


def voids(draft: Draft) -> list[list[int]]:
    """Of each question how many pixels are void."""
    return [[level.rle.area for level in asked.tags[0].levels] for asked in draft.references]


TARGET = ("target", box(0, 0, 19, 29))


def test_a_target_and_what_is_to_be_ignored_are_kept_apart(files: Files):
    draft = reasoning(files, asking(TARGET, ("Ignore this", box(5, 5, 9, 9)), ("flag", [[1, 1]])))
    assert not draft.faults
    (asked,) = draft.references
    question = phrases.REASON_WHAT.format("the eager one")
    assert asked == Reference(question, "<object0>", [Tag("<object0>", 1, asked.tags[0].levels)], "train", "reason0")
    (target,), (void,) = draft.objects, asked.tags[0].levels
    assert (target.segment_id, target.is_crowd, target.rle.area) == (1, False, 20 * 30 - 25)
    assert (void.value, void.rle.area) == (VOID, 25)
    assert not (target.rle.mask() & void.rle.mask()).any()


def test_a_smaller_outline_stands_on_a_larger_and_of_two_alike_the_first(files: Files):
    inside = asking(("ignore", box(0, 0, 39, 29)), ("target", box(2, 2, 4, 3)))
    alike = asking(("target", box(0, 0, 3, 3)), ("ignore", box(2, 0, 5, 3)))
    draft = reasoning(files, inside, alike)
    assert [(each.segment_id, each.rle.area) for each in draft.objects] == [(1, 3 * 2), (2, 16)]
    assert voids(draft) == [[40 * 30 - 6], [8]]


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
    assert [each.tags[0].segment_id for each in draft.references] == [1, 2]
    assert [each.rle.area for each in draft.objects] == [0, 2 * 5]
    assert voids(draft) == [[100], []]


def test_what_is_void_is_so_for_its_own_record_alone(files: Files):
    ignored = [("ignore", box(x, 5, x + 4, 9)) for x in (25, 32)]
    draft = reasoning(files, asking(TARGET, ignored[0]), asking(TARGET, *ignored), asking(TARGET))
    assert (len(draft.objects), voids(draft)) == (1, [[25], [50], []])


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


def test_records_are_known_by_the_names_of_their_files(files: Files):
    reasoning(files, asking(TARGET))
    before = annotation_digests(files.source())
    (files.folder / "reason0" / "a.json").rename(files.folder / "reason0" / "b.json")
    assert annotation_digests(files.source())["reason0"] != before["reason0"]


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
