"""What a visit makes of a sample: the same dialogue in another order, under other numbers, pointed at anew."""

import re
from dataclasses import replace

import numpy as np
import pytest

from schemas.dialogue import PromptSlot, Sample, Turn
from schemas.marks import Pen
from schemas.regions import Level, Rle
from student.data.visits import Visit, shown

PROMPTS = 6


def disk(row: int, column: int, radius: float = 9.5) -> np.ndarray:
    y, x = np.mgrid[:60, :80]
    return (y - row) ** 2 + (x - column) ** 2 < radius**2


def told(kinds: tuple[str, ...], count: int = 4) -> Sample:
    """Region n, a disk about (30, 12 + 16 n), is called "number n"; a prompt that is not there is denied."""
    turns = [Turn(f"Describe <Prompt{n}>.", f"<Prompt{n}>: number {n}") for n in range(count)]
    turns += [Turn("Describe <Prompt5>.", "<Prompt5> is not in the image.")]
    slots = [PromptSlot(n, Rle.of(disk(30, 12 + 16 * n)), list(kinds)) for n in range(count)]  # type: ignore[arg-type]
    return Sample("k-caption-0", "k", "train", "caption", turns, [], slots)


def segmented() -> Sample:
    answers = ["It is [SEG].", "[SEG] and [SEG].", "nothing", "No target [SEG]."]
    turns = [Turn(f"question {n}", answer) for n, answer in enumerate(answers)]
    masks = [Rle.of(disk(30, 10 * (n + 1))) for n in range(4)]
    return Sample("k-segmentation-0", "k", "train", "segmentation", turns, masks)


def visit_to(sample: Sample, epoch: int = 0, *, showing: int = 0, seed: int = 0, pen: Pen = Pen()) -> Sample:
    return shown(sample, Visit(3, seed, epoch, showing), pen, PROMPTS)


def test_turns_come_in_another_order_with_their_masks():
    sample, orders = segmented(), set()
    belongs = {"question 0": [0], "question 1": [1, 2], "question 2": [], "question 3": [3]}
    for epoch in range(12):
        seen = visit_to(sample, epoch)
        assert sorted(seen.turns, key=lambda turn: turn.question) == sample.turns
        assert seen.masks == [sample.masks[n] for turn in seen.turns for n in belongs[turn.question]]
        orders.add(tuple(turn.question for turn in seen.turns))
    assert len(orders) > 6


def test_levels_stay_with_their_masks():
    sample = segmented()
    levelled = replace(sample, levels=[[], [Level(3, Rle.of(disk(30, 40)))], [], [Level(5, Rle.of(disk(30, 40)))]])
    for epoch in range(6):
        seen = visit_to(levelled, epoch)
        values = {level.value: mask for mask, own in zip(seen.masks, seen.levels, strict=True) for level in own}
        assert values == {3: sample.masks[1], 5: sample.masks[3]}


def test_a_conversation_stays_in_its_order():
    sample = replace(segmented(), task="conversation")
    assert all(visit_to(sample, epoch) == sample for epoch in range(6))


def test_a_mask_too_many_is_not_lost_on_the_way():
    sample = segmented()
    assert len(visit_to(replace(sample, masks=[*sample.masks, sample.masks[0]])).masks) == 5


def test_prompts_get_other_numbers_and_stay_with_their_region():
    numberings = set()
    for epoch in range(12):
        seen = visit_to(told(("mask",)), epoch)
        numbers = {slot.index: slot.rle for slot in seen.prompts}
        for turn in seen.turns:
            asked, answered = (int(re.search(r"<Prompt(\d+)>", text)[1]) for text in (turn.question, turn.answer))
            assert asked == answered < PROMPTS
            if "not in the image" in turn.answer:
                assert asked not in numbers
            else:
                assert numbers[asked] == Rle.of(disk(30, 12 + 16 * int(turn.answer[-1])))
        numberings.add(tuple(slot.index for slot in seen.prompts))
    assert len(numberings) > 6
    assert {number for numbers in numberings for number in numbers} == set(range(PROMPTS))


@pytest.mark.parametrize("kind", ["point", "box", "scribble", "mask"])
def test_a_mark_is_of_its_kind_and_points_at_its_region(kind):
    sample = told((kind,))
    for slot, original in zip(visit_to(sample).prompts, sample.prompts, strict=True):
        marked, region = slot.rle.mask(), original.rle.mask()
        assert slot.kinds == []
        match kind:
            case "point":
                assert marked.sum() == 1
            case "box":
                y, x = np.nonzero(region)
                assert marked[y.min() : y.max() + 1, x.min() : x.max() + 1].all()
                assert marked.sum() == (np.ptp(y) + 1) * (np.ptp(x) + 1)
            case "scribble":
                assert 3 < marked.sum() < region.sum()
            case "mask":
                assert np.array_equal(marked, region)
        assert kind == "box" or not (marked & ~region).any()


def test_every_epoch_every_showing_and_every_prompt_is_drawn_for_itself():
    sample = told(("point",))
    visits = [visit_to(sample, epoch, showing=showing, seed=seed) for epoch in (0, 1) for showing in (0, 1) for seed in (0, 1)]
    assert len({str(visit.prompts) for visit in visits}) == 8
    centred = [slot.rle.box[0] - 16 * n for n, slot in enumerate(visits[0].prompts)]
    assert len(set(centred)) > 1


def test_a_mark_depends_on_no_other_prompt_and_on_no_number_of_the_sample():
    sample = told(("point", "scribble"))
    alone = replace(sample, prompts=sample.prompts[2:3])
    for epoch in range(4):
        whole = shown(sample, Visit(3, 0, epoch), Pen(), PROMPTS)
        assert shown(alone, Visit(99, 0, epoch), Pen(), PROMPTS).prompts == whole.prompts[2:3]


def test_all_kinds_come_and_one_that_is_named_twice_comes_twice_as_often():
    areas = [slot.rle.area for epoch in range(60) for slot in visit_to(told(("mask", "mask", "point")), epoch).prompts]
    assert set(areas) == {1, told(()).prompts[0].rle.area}
    assert 0.2 < areas.count(1) / len(areas) < 0.47


def test_the_pen_is_heeded():
    sample, thin, thick = told(("scribble",)), Pen(scribble_width=1), Pen(scribble_width=7)
    areas = [sum(slot.rle.area for slot in visit_to(sample, pen=pen).prompts) for pen in (thin, thick)]
    assert areas[1] > 2 * areas[0]


def test_what_has_no_kinds_is_shown_as_it_is_and_an_empty_region_too():
    nothing = PromptSlot(0, Rle.of(np.zeros((60, 80), bool)), ["point"])
    sample = replace(told(()), prompts=[*told(()).prompts[1:], nothing])
    assert [slot.rle for slot in visit_to(sample).prompts] == [slot.rle for slot in sample.prompts]


def drawn(visit: Visit) -> list[str]:
    """The questions of a dialogue with 2 sentences of reference 0, 3 of reference 1 and 1 of reference 2, at a visit."""
    references = [0, 0, 1, 1, 1, 2]
    turns = [Turn(f"{number} {k}", f"{k} is [SEG].") for k, number in enumerate(references)]
    masks = [Rle.of(disk(30, 10 * (k + 1))) for k in range(len(turns))]
    sample = Sample("k-segmentation-0", "k", "train", "segmentation", turns, masks, references=references)
    seen = shown(sample, visit, Pen(), PROMPTS)
    assert [int(turn.question[-1]) for turn in seen.turns] == [masks.index(mask) for mask in seen.masks]
    return [turn.question for turn in seen.turns]


def test_the_release_draws_five_references_and_one_twice_at_times():
    visits = [drawn(Visit(3, epoch=epoch)) for epoch in range(20)]
    assert {len(asked) for asked in visits} == {5}
    assert len({tuple(asked) for asked in visits}) > 10
    assert {question[0] for asked in visits for question in asked} == {"0", "1", "2"}
    assert max(asked.count(question) for asked in visits for question in asked) > 2, "there are three references only"


def test_of_a_reference_the_release_knows_one_sentence_in_each_of_its_copies():
    said = {showing: {q for epoch in range(20) for q in drawn(Visit(3, 0, epoch, showing))} for showing in range(6)}
    assert all(len(questions) == 3 for questions in said.values())
    assert len({frozenset(questions) for questions in said.values()}) > 1
    assert drawn(Visit(3, 1, 2, 3)) == drawn(Visit(3, 1, 2, 3))
