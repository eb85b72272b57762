import re

import numpy as np
import pyarrow as pa
import pytest

from schemas.annotations import Caption, Choice, Expression, Reference, Tag
from schemas.dialogue import Sample
from schemas.regions import Rle, Segment
from schemas.tables import ANNOTATIONS, SEGMENTS, left_out, revive
from stages.prompts import PromptsStage
from stages.samples import SamplesStage


def block(number: int) -> np.ndarray:
    mask = np.zeros((40, 40), bool)
    mask[:10, 10 * (number - 1) : 10 * number] = True
    return mask


SEGMENTS_1_TO_4 = [Segment(n, "cup", True, False, 1.0, "instances", Rle.of(block(n))) for n in (1, 2, 3, 4)]


def annotation(key: str, split: str = "train", **more) -> dict:
    row = {"image_key": key, "width": 40, "height": 40, "objects": SEGMENTS_1_TO_4}
    row |= {"captions": [], "choices": [], "references": [], "faults": []}
    expressions = [Expression(f"the cup {n}.", [n], split, "refs") for n in (1, 2, 3, 4)]  # type: ignore[arg-type]
    return row | {"expressions": expressions} | more


def written(stage: SamplesStage, *annotations: dict) -> pa.Table:
    segments = SEGMENTS.rows([{"image_key": a["image_key"], "segments": a["objects"]} for a in annotations])
    prompts = PromptsStage().draw({"segments": segments})
    return stage.write({"annotations": ANNOTATIONS.rows(list(annotations)), "prompts": prompts})


def samples(stage: SamplesStage, *annotations: dict) -> list[Sample]:
    return revive(list[Sample], written(stage, *annotations).to_pylist())


def number_in(question: str) -> int:
    return int(re.search(r"cup (\d)", question)[1])


def test_each_seg_has_its_mask_in_order():
    (sample,) = samples(SamplesStage(), annotation("k"))
    assert len(sample.turns) == 4
    assert sum(turn.answer.count("[SEG]") for turn in sample.turns) == len(sample.masks) == 4
    for turn, mask in zip(sample.turns, sample.masks, strict=True):
        number = number_in(turn.question)
        assert np.array_equal(mask.mask(), block(number))
        assert f"cup {number}." not in turn.question


def test_training_groups_turns_and_evaluation_asks_one_thing():
    trained = samples(SamplesStage(turns=3), annotation("k"))
    assert [len(sample.turns) for sample in trained] == [3, 1]
    asked = samples(SamplesStage(turns=3), annotation("k", "evaluation"))
    assert [len(sample.turns) for sample in asked] == [1, 1, 1, 1]
    assert asked[0].turns[0].question == "Please segment the cup 1 here."


def test_by_source_no_training_dialogue_is_of_two_data_sets():
    said = [Expression(f"the cup {n}", [n], "train", "odd" if n % 2 else "even") for n in (1, 2, 3, 4)]
    (mixed,) = samples(SamplesStage(), annotation("k", expressions=said))
    assert (len(mixed.turns), mixed.source) == (4, "")
    apart = samples(SamplesStage(by_source=True), annotation("k", expressions=said))
    named = {sample.source: {number_in(turn.question) for turn in sample.turns} for sample in apart}
    assert named == {"odd": {1, 3}, "even": {2, 4}}
    assert {sample.sample_id for sample in apart} == {"k-segmentation-0", "k-segmentation-1"}


def test_an_evaluation_dialogue_says_which_data_set_it_is_from():
    said = [Expression(f"the cup {n}", [n], "evaluation", f"set {n}") for n in (1, 2)]
    made = samples(SamplesStage(), annotation("k", expressions=said))
    assert [(sample.source, sample.turns[0].question) for sample in made] == [
        (f"set {n}", f"Please segment the cup {n} here.") for n in (1, 2)
    ]


def test_evaluation_can_be_limited_per_image_and_task():
    limited = samples(SamplesStage(evaluation_limit=2), annotation("k", "evaluation"))
    everything = samples(SamplesStage(), annotation("k", "evaluation"))
    assert len(limited) == 2
    assert all(sample.turns in [other.turns for other in everything] for sample in limited)


def test_an_image_with_evaluation_statements_is_not_trained_on():
    mixed = annotation("k", captions=[Caption(1, "a held-out cup", "evaluation", "c")])
    assert {(s.split, s.task) for s in samples(SamplesStage(), mixed)} == {("evaluation", "caption")}


def test_no_target_gets_an_empty_mask():
    nothing = annotation("k", expressions=[Expression("the cow", [], "train", "grefs")])
    (sample,) = samples(SamplesStage(), nothing)
    assert sample.turns[0].answer == "No target [SEG]."
    assert sample.masks[0].area == 0


def test_a_picture_without_objects_can_be_asked_what_it_lacks():
    (sample,) = samples(SamplesStage(), annotation("k", objects=[], expressions=[Expression("the cow", [], "train", "grefs")]))
    assert (sample.masks[0].height, sample.masks[0].width, sample.masks[0].area) == (40, 40, 0)


def test_every_statement_that_becomes_no_dialogue_is_counted():
    unknown = [Caption(9, "no such object", "train", "c"), Caption(1, "a cup", "train", "c")]
    many = Reference("between <a> and <b>", "<c>", [Tag(f"<{name}>", n) for n, name in enumerate("abc", 1)], "train", "vres")
    trained = annotation("a", captions=unknown, references=[many])
    held_out = annotation("b", "evaluation", captions=[Caption(1, "a cup", "train", "c")])
    table = written(SamplesStage(prompts=1, evaluation_limit=3), trained, held_out, annotation("c", error="data: bad"))
    assert left_out(table) == {
        "caption: its object has no prompt": 1,
        "caption: its picture is evaluated on": 1,
        "reference: it points with more than 1 prompts": 1,
        "segmentation: its picture or the picture's prompts failed": 4,
        "segmentation: over evaluation_limit": 1,
    }


@pytest.mark.parametrize("kinds", [("mask",), ("point", "box")])
def test_training_captions_keep_the_object_and_the_kinds_of_mark_to_point_with(kinds):
    captions = [Caption(n, f"number {n}", "train", "c") for n in (1, 2, 3, 4)]
    stage = SamplesStage(tasks=("caption",), prompt_kinds=kinds, negative_rate=0.0)
    (sample,) = samples(stage, annotation("k", captions=captions))
    for turn, slot in zip(sample.turns, sample.prompts, strict=True):
        assert f"<Prompt{slot.index}>" in turn.question
        number = int(re.fullmatch(rf"<Prompt{slot.index}>: number (\d)", turn.answer)[1])
        assert np.array_equal(slot.rle.mask(), block(number))
        assert slot.kinds == list(kinds)
    assert len({slot.index for slot in sample.prompts}) == 4


def test_evaluation_points_with_masks_as_they_are():
    row = annotation("k", "evaluation", captions=[Caption(3, "number 3", "evaluation", "c")])
    (sample,) = samples(SamplesStage(tasks=("caption",), prompt_kinds=("point",)), row)
    assert np.array_equal(sample.prompts[0].rle.mask(), block(3))
    assert sample.prompts[0].kinds == []


def test_negative_turns_speak_of_a_prompt_that_is_not_there():
    captions = [Caption(n, f"number {n}", "train", "c") for n in (1, 2, 3)]
    stage = SamplesStage(tasks=("caption",), negative_rate=1.0)
    (sample,) = samples(stage, annotation("k", captions=captions))
    used = {f"<Prompt{slot.index}>" for slot in sample.prompts}
    denied = [turn for turn in sample.turns if turn.answer.endswith("is not in the image.")]
    assert denied
    assert not used & {turn.answer.split()[0] for turn in denied}


def test_choices_and_references_turn_tags_into_prompts_and_masks():
    choice = Choice(2, "Which colour? A. red B. blue", "A. red", "evaluation", "mcq")
    tags = [Tag("<object1>", 3), Tag("<object2>", 1)]
    reference = Reference("the cup left of <object1>", "<object2>", tags, "evaluation", "vres")
    row = annotation("k", "evaluation", choices=[choice], references=[reference])
    asked = {sample.task: sample for sample in samples(SamplesStage(tasks=("choice", "reference")), row)}
    assert asked["choice"].turns[0].answer == "A. red"
    assert "<Prompt0>" in asked["choice"].turns[0].question
    assert np.array_equal(asked["choice"].prompts[0].rle.mask(), block(2))
    assert asked["reference"].turns[0].question == "the cup left of <Prompt0>"
    assert np.array_equal(asked["reference"].prompts[0].rle.mask(), block(3))
    assert np.array_equal(asked["reference"].masks[0].mask(), block(1))


def test_every_mention_of_a_tag_is_a_mask_and_the_longer_of_two_alike_is_meant():
    tags = [Tag("obj1", 1), Tag("obj10", 3)]
    reference = Reference("Which are these?", "obj10 beside obj1, and obj10 again", tags, "evaluation", "vres")
    (sample,) = samples(SamplesStage(tasks=("reference",)), annotation("k", "evaluation", references=[reference]))
    assert sample.turns[0].answer == "[SEG] beside [SEG], and [SEG] again"
    for rle, number in zip(sample.masks, (3, 1, 3), strict=True):
        assert np.array_equal(rle.mask(), block(number))


def test_a_dialogue_points_at_one_object_with_one_prompt():
    tags = [Tag("<a>", 3), Tag("<b>", 1), Tag("<c>", 3)]
    references = [Reference(f"the {n}. right of <a> and <c>", "<b>", tags, "train", "vres") for n in range(3)]
    (sample,) = samples(SamplesStage(tasks=("reference",)), annotation("k", references=references))
    assert [(slot.index, slot.rle) for slot in sample.prompts] == [(0, SEGMENTS_1_TO_4[2].rle)]
    assert all(turn.question.endswith("right of <Prompt0> and <Prompt0>") for turn in sample.turns)


def test_a_dialogue_never_needs_more_prompts_than_there_are():
    tags = [Tag("<a>", 3), Tag("<b>", 1)]
    references = [Reference("right of <a>", "<b>", tags, "train", "vres")] * 9
    stage = SamplesStage(tasks=("reference",), turns=9, prompts=4)
    made = samples(stage, annotation("k", references=references))
    assert [len(sample.turns) for sample in made] == [4, 4, 1]
    assert all(sorted(slot.index for slot in sample.prompts) <= [0, 1, 2, 3] for sample in made)


def test_rows_depend_on_the_image_alone_and_failed_images_say_nothing():
    both = samples(SamplesStage(), annotation("a"), annotation("b"))
    assert [s for s in both if s.image_key == "b"] == samples(SamplesStage(), annotation("b"))
    assert samples(SamplesStage(), annotation("a", error="data: bad")) == []
