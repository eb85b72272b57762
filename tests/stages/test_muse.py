"""MUSE, read for one picture of 40 x 30 pixels: questions about several objects, and what goes wrong in them."""

import re
from typing import Any

import pytest

from schemas.annotations import Tag
from schemas.dialogue import Turn
from stages.sources.draft import Draft
from tests.stages.annotated import HEIGHT, LEFT, NAME, RIGHT, WIDTH, Files, kinds, left_half, rle


def target(segmentation: Any, name: str = "cat", **more: Any) -> dict[str, Any]:
    return {"segmentation": segmentation, "category_name": name} | more


def muse(files: Files, answers: list[Any], texts: list[Any], **changes: Any) -> Draft:
    record = {
        "file_name": NAME,
        "width": WIDTH,
        "height": HEIGHT,
        "questions": ["Who is there?", "And who sleeps?"][: len(answers)],
    }
    return files.add(
        "muse", "muse.json", [record | {"answers": answers, "text_answers": texts} | changes], split="train"
    ).draft()


def test_an_answer_of_muse_has_a_tag_for_each_mask(files: Files):
    answers = [[target([LEFT]), target(rle(~left_half()))], [target([LEFT])]]
    draft = muse(files, answers, ["The cat {seg} beside the dog {seg}.", "{seg}, I think"])
    assert not draft.faults
    (told,) = draft.conversations
    assert told.turns == [
        Turn("Who is there? Respond with segmentation masks.", "The cat <object0> beside the dog <object1>."),
        Turn("And who sleeps? Respond with segmentation masks.", "<object2>, I think"),
    ]
    assert (told.pointed, told.segmented) == ([], [Tag("<object0>", 1), Tag("<object1>", 2), Tag("<object2>", 1)])


def test_objects_without_a_text_are_put_into_words_with_a_mask_each(files: Files):
    three = [target([LEFT]), target([RIGHT], "dog", rephrased_name="sleepy dog"), target([[0, 0, 9, 0, 9, 9]], "cow")]
    draft = muse(files, [three], [None])
    (turn,) = draft.conversations[0].turns
    assert [turn.answer.count(f"<object{number}>") for number in range(4)] == [1, 1, 1, 0]
    assert turn.answer.endswith(".")
    again = Files(files.folder / "again")
    again.folder.mkdir()
    assert muse(again, [three], [None]).conversations == draft.conversations


@pytest.mark.parametrize(
    ("kind", "answers", "texts", "changes"),
    [
        ("count", [[target([LEFT])]], ["no mask"], {}),
        ("count", [[target([LEFT])]], ["{seg} and {seg}"], {}),
        ("count", [[]], [None], {}),
        ("size", [[target([LEFT])]], ["{seg}"], {"width": 41}),
        ("text", [[target([LEFT])]], ["<object0> {seg}"], {}),
        ("text", [[target([LEFT], "[SEG]")]], [None], {}),
        ("text", [], [], {}),
        ("mask", [[target([[0, 0, 5, 5]])]], ["{seg}"], {}),
        ("record", [[target([LEFT])]], ["{seg}", "{seg}"], {}),
        ("record", [["cat"]], ["{seg}"], {}),
        ("record", [5], ["{seg}"], {}),
        ("record", [[target([LEFT])]], ["{seg}"], {"questions": None}),
    ],
)
def test_what_is_wrong_with_a_record_of_muse_is_named(files: Files, kind: str, answers: Any, texts: Any, changes: Any):
    draft = muse(files, answers, texts, **changes)
    assert kinds(draft) == [kind]
    assert (draft.conversations, draft.objects) == ([], [])


def test_a_refused_conversation_leaves_no_object_behind(files: Files):
    draft = muse(files, [[target([LEFT])], [target([RIGHT])]], ["{seg}", "no mask"])
    assert (kinds(draft), draft.conversations, draft.objects) == (["count"], [], [])


def test_muse_calls_a_picture_by_its_name_or_its_address(files: Files):
    record = {"coco_url": f"http://pictures.example/train2017/{NAME}", "questions": ["Who?"], "answers": [[target([LEFT])]]}
    assert len(files.add("muse", "muse.json", [record], split="train").draft().conversations) == 1


def told_of_two(files: Files, count: int) -> list[str]:
    """Answers about a cat, which has a longer name, and a dog, which has none."""
    pair = [target([LEFT], "cat", rephrased_name="eager cat"), target([RIGHT], "dog", rephrased_name="")]
    asked = [f"Who is number {number}?" for number in range(count)]
    (told,) = muse(files, [pair] * count, [None] * count, questions=asked).conversations
    return [turn.answer for turn in told.turns]


def test_an_object_is_called_by_its_longer_name_nine_times_in_ten(files: Files):
    named = [answer for answer in told_of_two(files, 2000) if "cat" in answer]
    assert all("dog" in answer for answer in named)
    assert 0.87 < sum("eager cat" in answer for answer in named) / len(named) < 0.93


def test_half_of_the_answers_have_words_for_each_object(files: Files):
    answers = told_of_two(files, 2000)
    apart = [answer for answer in answers if not re.search(r"<object\d+> and <object\d+>", answer)]
    assert all(answer.count(" is ") == 2 or answer.count("the segmentation result of ") == 2 for answer in apart)
    assert 0.45 < len(apart) / len(answers) / (2 / 3) < 0.55  # the third of three forms is the mask alone
