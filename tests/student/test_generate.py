"""Answers by cache and by batch are those of a plain loop, and a mask asked for in an answer is the mask of training."""

from typing import Any

import numpy as np
import pytest
import torch

from student.generate import Generated, generate
from student.model import PixelSail
from student.sequence import Example, collate, encode
from tests.student.micro import micro_config, micro_vocabulary, picture, plain, square

STEPS = 7


@pytest.fixture(scope="module")
def student() -> PixelSail:
    return PixelSail(micro_config(), micro_vocabulary(), torch.Generator().manual_seed(0)).eval()


def question(rng: np.random.Generator, text: str, height: int = 40, width: int = 56, **over) -> Example:
    settings = {"turns": [(text, None)], "image": picture(rng, height, width), "sample_id": text}
    return encode(micro_vocabulary(), micro_config(), **(settings | over))


@pytest.fixture
def questions(rng: np.random.Generator) -> list[Example]:
    """Of different lengths and grids, one with a marked region, one without a picture, one with a begun answer."""
    return [
        question(rng, "Please segment the red circle."),
        question(rng, "What is <Prompt1>?", 64, 30, prompts=[(1, square(64, 30, 5, 5, 20))]),
        question(rng, "And this?", image=None),
        question(rng, "Where is it?", 20, 33, prefix_answer="It is [SEG]"),
        question(rng, "A blue square beside it, and then a longer question?", 20, 33),
    ]


def same(one: Generated, other: Generated) -> bool:
    assert torch.allclose(one.mask_logits_nhw, other.mask_logits_nhw, atol=1e-4)
    return (one.text, one.token_ids) == (other.text, other.token_ids)


def test_answers_are_those_of_a_plain_loop(student: PixelSail, questions: list[Example]):
    answers = generate(student, micro_vocabulary(), questions, STEPS)
    assert [answer.token_ids for answer in answers] == [plain(student, example, STEPS) for example in questions]
    assert len({tuple(answer.token_ids) for answer in answers}) > 1


def test_an_answer_outgrows_the_room_that_was_left_for_it(student: PixelSail, questions: list[Example]):
    (answer,) = generate(student, micro_vocabulary(), questions[:1], 70)
    assert answer.token_ids == plain(student, questions[0], 70)
    assert len(answer.token_ids) == 70


def test_answers_do_not_depend_on_the_batch(student: PixelSail, questions: list[Example]):
    together = generate(student, micro_vocabulary(), questions, STEPS)
    alone = [generate(student, micro_vocabulary(), [example], STEPS)[0] for example in questions]
    by_two = generate(student, micro_vocabulary(), questions, STEPS, batch=2)
    assert all(map(same, together, alone))
    assert all(map(same, together, by_two))


def test_drawn_answers_do_not_depend_on_the_batch(student: PixelSail, questions: list[Example]):
    drawn = {"temperature": 1.5, "seed": 3}
    together = generate(student, micro_vocabulary(), questions, STEPS, **drawn)
    alone = [generate(student, micro_vocabulary(), [example], STEPS, **drawn)[0] for example in questions]
    assert all(map(same, together, alone))
    assert [one.token_ids for one in together] != [
        one.token_ids for one in generate(student, micro_vocabulary(), questions, STEPS)
    ]
    other_seed = generate(student, micro_vocabulary(), questions, STEPS, temperature=1.5, seed=4)
    assert [one.token_ids for one in together] != [one.token_ids for one in other_seed]


def test_a_question_that_is_asked_twice_is_answered_by_other_numbers(student: PixelSail, questions: list[Example]):
    answers = generate(student, micro_vocabulary(), [*questions[:1] * 2, questions[1]], STEPS, temperature=1.5)
    assert answers[0].token_ids != answers[1].token_ids
    assert same(answers[2], *generate(student, micro_vocabulary(), questions[1:2], STEPS, temperature=1.5))


@torch.no_grad()
def test_tokens_are_drawn_as_often_as_they_are_likely(student: PixelSail, questions: list[Example]):
    example, temperature = questions[0], 0.7
    likely_V = (student.logits(student.states(collate([example]))[-1]) / temperature).softmax(dim=-1)
    answers = generate(student, micro_vocabulary(), [example] * 1000, 1, batch=250, temperature=temperature)
    stops = [micro_vocabulary().end_of_text, micro_vocabulary().turn_end]
    drawn = (
        torch.tensor([answer.token_ids[0] for answer in answers if answer.token_ids]).bincount(minlength=len(likely_V)) / 1000
    )
    likely_V[stops] = 0
    assert (drawn - likely_V).abs().max() < 0.05


def saying(student: PixelSail, example: Example, token: int, **over: Any) -> PixelSail:
    """A student that answers `example` with `token` first: its head reads nothing but the state it has there."""
    changed = PixelSail(micro_config(**over), micro_vocabulary(), None)
    changed.load_state_dict(student.state_dict())
    with torch.no_grad():
        state = student.states(collate([example]))[-1]
        head = changed.single_transformer.lm_head.weight
        head.zero_()
        head[token] = state
    return changed.eval()


@torch.no_grad()
def test_a_mask_of_the_answer_is_the_mask_of_training(student: PixelSail, rng: np.random.Generator):
    image, vocabulary = picture(rng, 40, 56), micro_vocabulary()
    asked = question(rng, "Where?", image=image)
    answer = generate(saying(student, asked, vocabulary.seg), vocabulary, [asked], max_new_tokens=1)[0]
    assert answer.token_ids == [vocabulary.seg]
    taught = question(rng, "Where?", image=image, turns=[("Where?", "[SEG]")], masks=[square(40, 56, 2, 2, 9)])
    assert torch.allclose(answer.mask_logits_nhw, student(collate([taught])).mask_logits[0], atol=1e-5)


def test_in_the_release_a_seg_at_which_the_answer_is_broken_off_brings_no_mask(student: PixelSail, rng: np.random.Generator):
    asked, vocabulary = question(rng, "Where?", prefix_answer="Here: [SEG] and"), micro_vocabulary()
    release = saying(student, asked, vocabulary.seg, compat="paper")
    found = {steps: generate(release, vocabulary, [asked], steps)[0] for steps in (0, 1, 2)}
    assert [len(found[steps].mask_logits_nhw) for steps in (0, 1)] == [1, 1], "that of the begun answer, which is read"
    assert found[1].token_ids == [vocabulary.seg]
    correct = generate(saying(student, asked, vocabulary.seg), vocabulary, [asked], 2)[0]
    assert correct.token_ids == found[2].token_ids
    seen, last = correct.token_ids.count(vocabulary.seg), correct.token_ids[-1] == vocabulary.seg
    assert len(correct.mask_logits_nhw) == 1 + seen
    assert len(found[2].mask_logits_nhw) == 1 + seen - last


@torch.no_grad()
def test_a_begun_answer_brings_its_mask(student: PixelSail, rng: np.random.Generator):
    image = picture(rng, 40, 56)
    masks = [square(40, 56, 2, 2, 9), square(40, 56, 20, 20, 9)]
    earlier = ("Where is red?", "It is [SEG].")
    asked = question(rng, "", image=image, turns=[earlier, ("And blue?", None)], masks=masks[:1], prefix_answer="Here: [SEG]")
    (answer,) = generate(student, micro_vocabulary(), [asked], max_new_tokens=1)
    taught = question(rng, "", image=image, turns=[earlier, ("And blue?", "Here: [SEG]")], masks=masks)
    assert torch.allclose(answer.mask_logits_nhw, student(collate([taught])).mask_logits[0][1:], atol=1e-5)


@pytest.mark.parametrize("stop", ["end_of_text", "turn_end"])
def test_an_answer_ends_at_the_stop(student: PixelSail, rng: np.random.Generator, stop: str):
    asked = question(rng, "What is red?")
    silent = saying(student, asked, getattr(micro_vocabulary(), stop))
    (answer,) = generate(silent, micro_vocabulary(), [asked], STEPS)
    assert (answer.text, answer.token_ids, answer.mask_logits_nhw.numel()) == ("", [], 0)


def test_long_answers_that_end_one_after_the_other_are_those_given_alone(student: PixelSail, questions: list[Example]):
    """The cache grows twice, and those that have ended leave the batch."""
    drawn = {"max_new_tokens": 120, "temperature": 1.0, "seed": 1}
    together = generate(student, micro_vocabulary(), questions, **drawn)
    alone = [generate(student, micro_vocabulary(), [example], **drawn)[0] for example in questions]
    assert all(map(same, together, alone))
    lengths = sorted(len(answer.token_ids) for answer in together)
    assert lengths[2] < lengths[3] < lengths[4] == 120


def test_no_question_has_no_answer(student: PixelSail):
    assert generate(student, micro_vocabulary(), []) == []


def test_masks_have_the_size_of_the_picture():
    logits = torch.tensor([[[4.0, -4.0], [4.0, -4.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    masks = Generated("", [], logits).masks(4, 6)
    assert masks.dtype == bool
    assert masks.shape == (2, 4, 6)
    assert masks[0, :, :3].all()
    assert not masks[0, :, 3:].any()
    assert not masks[1].any()
    assert Generated("", [], torch.zeros(0, 1, 1)).masks(4, 6).shape == (0, 4, 6)
