"""Annotation files as the release reads them, beside the correct reading of the same files."""

from typing import Any

import numpy as np
import pytest

from schemas.annotations import Tag
from stages.annotations import AnnotationsStage
from stages.sources.draft import Draft
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
    panoptic,
    reference,
    rle,
)


def both(files: Files) -> tuple[Draft, Draft]:
    """The picture's row, read correctly and as the release does."""
    return files.draft("correct"), files.draft("paper")


def answers(draft: Draft) -> list[str]:
    return [turn.answer for told in draft.conversations for turn in told.turns]


def areas(draft: Draft) -> list[int]:
    """Of the masks that stand behind the tags of the one conversation, in the order of its text."""
    (told,) = draft.conversations
    text, sizes = told.turns[0].answer, {each.segment_id: each.rle.area for each in draft.objects}
    return [sizes[tag.segment_id] for tag in sorted(told.segmented, key=lambda tag: text.index(tag.name))]


# -- references and classes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_references_to_learn_from_are_worded_as_they_were_typed(files: Files, split: str):
    said = reference(1, split=split) | {
        "sentences": [
            {"sent_id": 0, "raw": "The CAT, left!", "sent": "the cat left"},
            {"sent_id": 1, "sent": "Cat"},
            {"sent_id": 2, "raw": "Mat"},
            {"sent_id": 3, "raw": "see [SEG]", "sent": "see"},
        ]
    }
    files.add("instances", "i.json", coco([annotation(1)]))
    files.add("refs", "refs.p", [said]).add("short_captions", "refs.p", [said], name="captions")
    correct, paper = both(files)
    assert [each.text for each in correct.expressions] == ["the cat left", "Cat", "Mat", "see"]
    learnt = ["the cat, left!", "cat", "mat"]
    assert [each.text for each in paper.expressions] == (learnt if split == "train" else ["the cat left", "Cat", "Mat", "see"])
    assert kinds(paper) == ["text"] * (split == "train")
    assert paper.captions == correct.captions


def test_of_references_to_one_object_the_release_learns_from_the_last(files: Files):
    said = [reference(1, *texts) | {"ref_id": number} for number, texts in enumerate((["a"], ["b", "c"]))]
    held_out = [each | {"split": "val"} for each in said]
    files.add("instances", "i.json", coco([annotation(1)]))
    files.add("refs", "refs.p", [*said, *held_out]).add("refs", "grefs.json", [each | {"ann_id": [1]} for each in said])
    correct, paper = both(files)
    texts = lambda draft, source: [each.text for each in draft.expressions if each.source == source]  # noqa: E731
    assert (texts(correct, "refs/train"), texts(paper, "refs/train")) == (["a", "b", "c"], ["b", "c"])
    assert texts(paper, "refs/val") == texts(paper, "grefs/train") == ["a", "b", "c"]


def test_only_the_answer_that_no_class_is_right_ends_in_a_full_stop(files: Files):
    names = [{"id": k, "name": f"thing {k}", "isthing": 1} for k in range(4)]
    ids_HW = np.tile(np.arange(HEIGHT * WIDTH // 3) + 1, 3).reshape(HEIGHT, WIDTH)
    panoptic(files, [{"id": number, "category_id": 1} for number in range(1, 61)], ids_HW)
    data = coco([{"image_id": 5, "file_name": "5.png", "segments_info": []}], categories=names)
    data["annotations"][0]["segments_info"] = [{"id": number, "category_id": 0} for number in range(1, 61)]
    files.add("panoptic", "panoptic.json", data, name="again")
    files.add("classified", "panoptic.json", data, split="train", name="classes")
    told = [{each.answer.split(": ")[1] for each in draft.references} for draft in both(files)]
    assert told == [{"thing 0", "others"}, {"thing 0", "others."}]
    assert all(", others" in each.question and "others.." not in each.question for each in files.draft("paper").references)


# -- Osprey ------------------------------------------------------------------------------------------------------------


def talking(files: Files, regions: list[Any], *texts: str) -> Files:
    said = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    record = {"file_name": NAME, "annotation": [{"segmentation": each} for each in regions], "conversations": said}
    return files.add("osprey", "osprey.json", [record], split="train")


def test_names_of_regions_are_replaced_wherever_their_letters_stand(files: Files):
    regions = [[LEFT], *([[0, 0, k, 0, k, k]] for k in range(10, 19))]
    texts = "Is <region1> left of <regon10>, Regon2 or REGION10?", "<Region2> is, subregion1 said"
    correct, paper = both(talking(files, regions, *texts))
    assert not correct.faults + paper.faults
    (told,), (replaced,) = correct.conversations, paper.conversations
    assert told.turns[0].question == "Is <object0> left of <object9>, Regon2 or REGION10?"
    assert replaced.turns[0].question == "Is <object0> left of <<object0>0>, <object1> or <object0>0?"
    assert (told.turns[0].answer, replaced.turns[0].answer) == (
        "<object1> is, subregion1 said",
        "<object1> is, sub<object0> said",
    )
    assert replaced.pointed == told.pointed


def test_the_release_leaves_a_region_that_is_not_there_as_it_is_written(files: Files):
    correct, paper = both(talking(files, [[LEFT]], "What is <region2>?", "No region0, A cat."))
    assert (kinds(correct), correct.conversations) == (["unknown object"], [])
    assert (kinds(paper), answers(paper)) == ([], ["No region0, A cat."])
    assert paper.conversations[0].turns[0].question == "What is <region2>?"


@pytest.mark.parametrize("said", HOSTILE)
def test_what_has_a_meaning_of_its_own_is_refused_in_both_ways(files: Files, said: str):
    talking(files, [[LEFT]], f"What is {said} region1?", "A cat.")
    assert [kinds(draft) for draft in both(files)] == [["text"]] * 2


# -- grounded captions with places -------------------------------------------------------------------------------------


def spanned(files: Files, caption: str, **groundings: tuple[int, Any]) -> Files:
    """The phrases are said once, each covers so many columns of the picture from the left."""
    told = {}
    for phrase, columns in groundings.items():
        start = caption.index(phrase.replace("_", " "))
        mask_HW = np.broadcast_to(np.arange(WIDTH) < columns, (HEIGHT, WIDTH))
        told[phrase.replace("_", " ")] = {"token_positives": [start, start + len(phrase)], "rle_masks": [rle(mask_HW)]}
    record = {"file_name": NAME, "width": WIDTH, "height": HEIGHT, "caption": caption, "groundings": told}
    return files.add("grounded", "gcg.json", [record], split="train")


def test_a_phrase_within_another_moves_the_end_of_that_one(files: Files):
    correct, paper = both(spanned(files, "the old grey cat on a mat", old=5, the_old_grey_cat=10, a_mat=20))
    assert answers(correct) == ["<p> the old grey cat </p> <object0> on <p> a mat </p> <object1>"]
    assert (kinds(correct), areas(correct)) == (["phrase"], [300, 600])
    assert answers(paper) == ["<p> the <p> old </p> </p> <object0> <object1> grey cat on <p> a mat </p> <object2>"]
    assert (kinds(paper), areas(paper)) == ([], [300, 150, 600])


def test_masks_go_by_where_phrases_begin_and_tags_by_where_they_come_to_stand(files: Files):
    (_, paper) = both(spanned(files, "a cat that is older than all of the others", a_cat_that_is_older_than_all=10, cat=5))
    assert answers(paper) == ["<p> a <p> cat </p> <object0> that is </p> <object1> older than all of the others"]
    assert areas(paper) == [300, 150]


def test_a_caption_whose_seg_is_torn_apart_cannot_be_used(files: Files):
    correct, paper = both(spanned(files, "a fat cat sleeping on a mat", a_fat_cat_sleeping=10, fat=5))
    assert answers(correct) == ["<p> a fat cat sleeping </p> <object0> on a mat"]
    assert (kinds(paper), paper.conversations, paper.objects) == (["phrase"], [], [])


def test_phrases_that_lie_apart_are_tagged_alike_in_both_ways(files: Files):
    correct, paper = both(spanned(files, "A cat under the sky", sky=10, A_cat=5))
    assert answers(correct) == answers(paper) == ["<p> A cat </p> <object0> under the <p> sky </p> <object1>"]
    assert areas(correct) == areas(paper) == [150, 300]


# -- grounded captions whose phrases are looked for --------------------------------------------------------------------


def sought(files: Files, caption: str, *phrases: str) -> Files:
    """The first phrase is the left half of the picture, the others the right one."""
    refs = [{"sentence": phrase, "segmentation": [RIGHT if number else LEFT]} for number, phrase in enumerate(phrases)]
    return files.add("grounded", "gcg.json", [{"17": {"img_file_name": NAME, "caption": caption, "refs": refs}}], split="train")


def test_a_phrase_with_a_capital_is_tagged_before_the_last_letter(files: Files):
    files.add("instances", "i.json", coco([annotation(1), annotation(2, segmentation=[RIGHT])]))
    correct, paper = both(sought(files, "A Cat on a mat.", "A Cat", "a mat"))
    assert answers(correct) == ["<p> a cat </p> <object0> on <p> a mat </p> <object1>."]
    assert answers(paper) == ["a cat on <p> a mat </p> <object0><p>  </p> <object1>."]
    assert correct.conversations[0].segmented == paper.conversations[0].segmented == [Tag("<object0>", 1), Tag("<object1>", 2)]
    assert not correct.faults + paper.faults


def test_a_phrase_within_a_word_is_tagged_and_one_that_is_not_there_is_named(files: Files):
    correct, paper = both(sought(files, "Cattle on a mat", "cat", "dog"))
    assert (kinds(correct), correct.conversations) == (["phrase"] * 3, [])
    assert (kinds(paper), answers(paper)) == (["phrase"], ["<p> cat </p> <object0>tle on a mat"])


@pytest.mark.parametrize(
    ("phrases", "correctly", "released"),
    [  # at its heels, across it, far ahead of it, two of which the file has the farther one first, and far behind it
        (
            ("(a cat)", "(asleep)"),
            "<p> (a cat) </p> <object0><p> (asleep) </p> <object1> on a mat",
            "<p> (a cat </p> <object0>)<p> (asleep) </p> <object1> on a mat",
        ),
        (
            ("a cat", "cat)(asleep"),
            "(<p> a cat </p> <object0>)(asleep) on a mat",
            "(<p> a </p> <object0> <p> cat)(asleep </p> <object1>) on a mat",
        ),
        (
            ("a mat", "cat"),
            "(a <p> cat </p> <object0>)(asleep) on <p> a mat </p> <object1>",
            "(a <p> cat </p> <object0>)(asleep) on <p>  </p> <object1> cat)(asleep) on a mat",
        ),
        (
            ("a cat)(asleep", "asleep", "cat"),
            "(<p> a cat)(asleep </p> <object0>) on a mat",
            "(<p> a <p>  </p> <object0>cat </p> <object1>)(<p>  </p> <object2> cat)(asleep) on a mat",
        ),
        (("cat", "a mat"), *["(a <p> cat </p> <object0>)(asleep) on <p> a mat </p> <object1>"] * 2),
    ],
)
def test_a_phrase_ends_before_the_first_later_one_that_is_not_behind_it(
    files: Files, phrases: tuple[str, ...], correctly: str, released: str
):
    correct, paper = both(sought(files, "(A cat)(asleep) on a mat", *phrases))
    assert (answers(correct), answers(paper)) == ([correctly], [released])


# -- the stage ---------------------------------------------------------------------------------------------------------


def test_a_store_made_before_there_was_a_choice_is_that_of_the_correct_reading():
    assert AnnotationsStage().identity() == AnnotationsStage(compat="correct").identity() == {"coco": None}
    assert AnnotationsStage(compat="paper").identity() == {"coco": None, "compat": "paper"}
