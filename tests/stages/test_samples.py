import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from schemas.annotations import STATEMENTS, Caption, Choice, Conversation, Expression, Reference, Tag
from schemas.dialogue import Sample, Turn
from schemas.regions import Rle, Segment
from schemas.tables import ANNOTATIONS, SEGMENTS, left_out, revive
from stages import phrases
from stages.prompts import PromptsStage
from stages.samples import SamplesStage


def block(number: int) -> np.ndarray:
    mask = np.zeros((40, 40), bool)
    mask[:10, 10 * (number - 1) : 10 * number] = True
    return mask


SEGMENTS_1_TO_4 = [Segment(n, "cup", True, False, 1.0, "instances", Rle.of(block(n))) for n in (1, 2, 3, 4)]


def annotation(key: str, split: str = "train", **more) -> dict:
    row = {"image_key": key, "width": 40, "height": 40, "objects": SEGMENTS_1_TO_4}
    row |= {column: [] for column in (*STATEMENTS, "faults")}
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


# -- conversations, and forms of asking ----------------------------------------------------------------------------------


def conversations(*said: Conversation, split: str = "train", **stage) -> list[Sample]:
    row = annotation("k", split, expressions=[], conversations=list(said))
    return samples(SamplesStage(tasks=("conversation",), **stage), row)


def test_a_conversation_is_a_dialogue_of_its_own_with_its_turns_in_order():
    turns = [[Turn(f"question {n}.{k}", f"answer {n}.{k}") for k in range(7)] for n in range(2)]
    made = conversations(*(Conversation(each, [], [], "train", "llava") for each in turns), turns=2, by_source=True)
    assert [sample.turns for sample in made] == turns
    assert {(sample.task, sample.source) for sample in made} == {("conversation", "llava")}
    assert [sample.sample_id for sample in made] == ["k-conversation-0", "k-conversation-1"]


def test_tags_of_a_conversation_are_marks_or_masks_wherever_they_stand():
    pointed, segmented = [Tag("<object0>", 3), Tag("<object3>", 2)], [Tag("<object1>", 1), Tag("<object2>", 4)]
    turns = [Turn("Who is here?", "<object1> and <object0>"), Turn("Left of <object0>?", "<object2>, <object1>")]
    (sample,) = conversations(Conversation(turns, pointed, segmented, "train", "c"))
    assert sample.turns == [Turn("Who is here?", "[SEG] and <Prompt0>"), Turn("Left of <Prompt0>?", "[SEG], [SEG]")]
    assert [(slot.index, slot.rle) for slot in sample.prompts] == [(k, SEGMENTS_1_TO_4[n].rle) for k, n in ((0, 2), (1, 1))]
    for rle, number in zip(sample.masks, (1, 4, 1), strict=True):
        assert np.array_equal(rle.mask(), block(number))


def test_an_empty_question_asks_for_a_grounded_description():
    said = [
        Conversation([Turn("", f"<p> cup {n} </p> <object0>")], [], [Tag("<object0>", n)], "train", "gcg") for n in range(1, 5)
    ]
    trained = conversations(*said)
    assert {sample.turns[0].question for sample in trained} <= set(phrases.GROUNDED)
    assert len({sample.turns[0].question for sample in trained}) > 1
    assert [sample.turns[0].answer for sample in trained] == [f"<p> cup {n} </p> [SEG]" for n in range(1, 5)]
    held_out = Conversation(said[0].turns, [], said[0].segmented, "evaluation", "gcg")
    (asked,) = conversations(held_out, split="evaluation")
    assert asked.turns[0].question == phrases.GROUNDED[0]


def test_who_points_may_be_asked_about_a_mark_that_is_not_there_and_for_short_answers():
    fifteen = [Tag(f"<object{k}>", k % 4 + 1) for k in range(15)]
    said = [Conversation([Turn("Is <object0> red?", "Yes")], tags, [], "train", "c") for tags in (fifteen[:1], fifteen)]
    said += [Conversation([Turn("Is it red?", "Yes")], [], [], "train", "c")]
    one, many, none = conversations(*said, negative_rate=1.0, forms={"c": "short"})
    assert [turn.answer for turn in one.turns] == ["<Prompt14> is not in the image.", "Yes"]
    assert one.turns[1].question == f"Is <Prompt0> red? {phrases.IN_A_WORD}"
    assert len(many.turns) == 2
    assert len(many.prompts) == 4
    assert [turn.answer for turn in none.turns] == ["Yes"]


def test_a_mark_that_is_not_there_is_asked_about_before_any_turn_and_at_most_once_a_dialogue():
    turns = [Turn(f"Is <object0> {colour}?", "No") for colour in ("red", "blue", "green")]
    said = [Conversation(turns, [Tag("<object0>", 1)], [], "train", "c")] * 40
    made = conversations(*said, negative_rate=0.3)
    places = [[k for k, turn in enumerate(sample.turns) if turn.answer.endswith("not in the image.")] for sample in made]
    assert {len(found) for found in places} == {0, 1}
    assert {k for found in places for k in found} == {0, 1, 2}
    assert all(len(sample.turns) == 3 + len(found) for sample, found in zip(made, places, strict=True))


@pytest.mark.parametrize("prompts", [15, 3])
def test_choices_of_a_class_may_follow_a_mark_that_is_not_there(prompts):
    said = [Reference("What is <a>? A, B.", "<a>: A", [Tag("<a>", n)], "train", "classes") for n in (1, 2, 3, 4)]
    row = annotation("k", expressions=[], references=said)
    plain = samples(SamplesStage(negative_rate=1.0, prompts=prompts), row)
    assert sum(len(sample.turns) for sample in plain) == 4
    made = samples(SamplesStage(negative_rate=1.0, prompts=prompts, forms={"classes": "classified"}), row)
    for sample in made:
        denied, *asked = sample.turns
        used = {f"<Prompt{slot.index}>" for slot in sample.prompts}
        assert {turn.answer.removesuffix(": A") for turn in asked} == used
        assert denied.answer.endswith(" is not in the image.")
        assert denied.answer.split()[0] in denied.question
        assert denied.answer.split()[0] not in used
    assert sum(len(sample.turns) - 1 for sample in made) == 4
    held_out = annotation("k", "evaluation", references=[replace(each, split="evaluation") for each in said])
    asked = samples(SamplesStage(tasks=("reference",), negative_rate=1.0, forms={"classes": "classified"}), held_out)
    assert [len(sample.turns) for sample in asked] == [1] * 4


def test_conversations_that_cannot_be_held_are_counted():
    unknown = Conversation([Turn("Who?", "<object0>")], [], [Tag("<object0>", 9)], "train", "c")
    many = Conversation([Turn("Which?", "Both")], [Tag("<object0>", 1), Tag("<object1>", 2)], [], "train", "c")
    crowd = [*SEGMENTS_1_TO_4, Segment(5, "cup", True, True, 1.0, "instances", Rle.of(block(1)))]
    pointed = Conversation([Turn("Who is <object0>?", "A crowd")], [Tag("<object0>", 5)], [], "train", "c")
    shown = Conversation([Turn("Where are they?", "<object0>")], [], [Tag("<object0>", 5)], "train", "c")
    row = annotation("k", objects=crowd, expressions=[], conversations=[unknown, many, pointed, shown])
    table = written(SamplesStage(tasks=("conversation",), prompts=1), row)
    assert left_out(table) == {
        "conversation: it names what is no object": 1,
        "conversation: it points with more than 1 prompts": 1,
        "conversation: its object has no prompt": 1,
    }
    assert [turns[0]["answer"] for turns in table.column("turns").to_pylist()] == ["[SEG]"]


def test_what_is_no_task_of_the_project_is_counted():
    row = annotation("k", conversations=[Conversation([Turn("Who?", "Nobody")], [], [], "train", "c")])
    assert left_out(written(SamplesStage(), row)) == {"conversation: not among samples.tasks": 1}


def test_annotations_from_before_there_were_conversations_give_the_same_dialogues():
    stage = SamplesStage(tasks=("segmentation", "conversation"))
    new = ANNOTATIONS.rows([annotation("k")])
    prompts = PromptsStage().draw({"segments": SEGMENTS.rows([{"image_key": "k", "segments": SEGMENTS_1_TO_4}])})
    made = [stage.write({"annotations": each, "prompts": prompts}) for each in (new, new.drop_columns(["conversations"]))]
    assert len(made[0]) == 1
    assert made[0].equals(made[1], check_metadata=True)


def test_an_empty_target_needs_no_prompt_and_is_an_empty_mask():
    nothing = [*SEGMENTS_1_TO_4, Segment(5, "", True, False, 1.0, "reason", Rle.of(np.zeros((40, 40), bool)))]
    asked = Reference("What sleeps? Output a mask.", "<object0>", [Tag("<object0>", 5)], "evaluation", "reason")
    row = annotation("k", "evaluation", objects=nothing, expressions=[], references=[asked])
    (sample,) = samples(SamplesStage(), row)
    assert (sample.turns[0].answer, sample.masks[0].area, sample.masks[0].height) == ("It is [SEG].", 0, 40)
    pointed = Reference("What is <object0>?", "A hole", [Tag("<object0>", 5)], "evaluation", "reason")
    assert samples(SamplesStage(), row | {"references": [pointed]}) == []


def test_short_captions_are_asked_for_as_such_and_an_object_has_one_in_a_dialogue():
    captions = [Caption(n, f"text {n}{letter}", "train", "short/train") for n in (1, 2) for letter in "abc"]
    captions += [Caption(3, "in detail", "train", "long")]
    stage = SamplesStage(tasks=("caption",), by_source=True, forms={"short": "short"}, negative_rate=1.0)
    made = samples(stage, annotation("k", captions=captions))
    short = [sample for sample in made if sample.source == "short/train"]
    (question,) = phrases.SHORT
    told: list[str] = []
    for sample in short:
        numbers = [re.fullmatch(r"<Prompt\d+>: text (\d[abc])", turn.answer) for turn in sample.turns]
        here = [found[1] for found in numbers if found]
        assert {turn.question for turn in sample.turns} <= {question.format(f"<Prompt{n}>") for n in range(15)}
        assert sorted(number[0] for number in here) == ["1", "2"]
        told += here
    assert sorted(told) == ["1a", "1b", "1c", "2a", "2b", "2c"]
    (long,) = (sample for sample in made if sample.source == "long")
    assert not any("few words" in turn.question for turn in long.turns)


def test_what_is_described_is_asked_for_by_its_whole_description():
    said = [Expression("A Cup. It is red.", [1], "train", "described"), Expression("A Cup.", [2], "train", "named")]
    stage = SamplesStage(by_source=True, phrasings=1, forms={"described": "described"})
    described, named = samples(stage, annotation("k", expressions=said))
    assert described.turns[0].question == phrases.DESCRIBED[0].format("A Cup. It is red.")
    assert named.turns[0].question == "Please segment a cup here."


def test_classes_are_asked_for_as_a_whole_and_things_one_by_one_in_one_turn():
    stage = SamplesStage(by_source=True, phrasings=1, forms={"all": "semantic"})
    whole = Expression("all the cup", [1, 2], "train", "all")
    each = Reference(
        "Segment cup.", "cup-1 <object0> cup-2 <object1>.", [Tag(f"<object{k}>", k + 3) for k in (0, 1)], "train", "i"
    )
    together, apart = samples(stage, annotation("k", expressions=[whole], references=[each]))
    assert together.turns[0].question == f"Please segment all the cup here. {phrases.SEMANTIC}"
    assert np.array_equal(together.masks[0].mask(), block(1) | block(2))
    assert apart.turns == [Turn("Segment cup.", "cup-1 [SEG] cup-2 [SEG].")]
    assert [np.array_equal(rle.mask(), block(number)) for rle, number in zip(apart.masks, (3, 4), strict=True)] == [True, True]


def test_samples_without_forms_are_known_by_what_they_were_known_by():
    assert "forms" not in SamplesStage().identity()
    assert SamplesStage(forms={"a": "short"}).identity()["forms"] == {"a": "short"}
