"""Answers of a student of EVEv2 by cache and by batch are those of a plain loop, and its masks those of training."""

import numpy as np
import pytest
import torch

from student.generate import generate
from student.model import PixelSail
from student.sequence import Example, collate, encode
from tests.student.eve.micro import eve_config, eve_student
from tests.student.micro import micro_vocabulary, picture, plain, square

STEPS = 6


@pytest.fixture(scope="module")
def student() -> PixelSail:
    return eve_student().eval()


def question(rng: np.random.Generator, text: str, height: int = 40, width: int = 56, **over) -> Example:
    settings = {"turns": [(text, None)], "image": picture(rng, height, width), "sample_id": text}
    return encode(micro_vocabulary(), eve_config(), **(settings | over))


@pytest.fixture
def questions(rng: np.random.Generator) -> list[Example]:
    return [
        question(rng, "Please segment the red circle."),
        question(rng, "What is <Prompt1>?", 64, 30, prompts=[(1, square(64, 30, 5, 5, 20))]),
        question(rng, "And this?", image=None),
        question(rng, "Where is it?", 20, 33, prefix_answer="It is [SEG]"),
        question(rng, "", 20, 33, turns=[("Red?", "It is [SEG]."), ("And now?", None)], masks=[square(20, 33, 1, 1, 9)]),
    ]


def test_answers_are_those_of_a_plain_loop(student: PixelSail, questions: list[Example]):
    answers = generate(student, micro_vocabulary(), questions, STEPS)
    assert [answer.token_ids for answer in answers] == [plain(student, example, STEPS) for example in questions]
    assert len({tuple(answer.token_ids) for answer in answers}) > 2


def test_answers_do_not_depend_on_the_batch(student: PixelSail, questions: list[Example]):
    together = generate(student, micro_vocabulary(), questions, STEPS)
    alone = [generate(student, micro_vocabulary(), [example], STEPS)[0] for example in questions]
    for one, other in zip(together, alone, strict=True):
        assert one.token_ids == other.token_ids
        torch.testing.assert_close(one.mask_logits_nhw, other.mask_logits_nhw, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_begun_answer_has_the_mask_of_training(student: PixelSail, rng: np.random.Generator):
    image = picture(rng, 40, 56)
    asked = question(rng, "Where?", image=image, prefix_answer="[SEG]")
    taught = question(rng, "Where?", image=image, turns=[("Where?", "[SEG]")], masks=[square(40, 56, 2, 2, 9)])
    (answer,) = generate(student, micro_vocabulary(), [asked], 1)
    torch.testing.assert_close(answer.mask_logits_nhw[:1], student(collate([taught])).mask_logits[0], rtol=0, atol=1e-5)


def test_a_seg_of_a_question_asks_for_nothing(student: PixelSail, rng: np.random.Generator):
    """Only answers point; so it is read in training, too."""
    (answer,) = generate(student, micro_vocabulary(), [question(rng, "Is it [SEG]?")], 1)
    assert len(answer.mask_logits_nhw) == answer.token_ids.count(micro_vocabulary().seg)
    taught = question(rng, "Is it [SEG]?", turns=[("Is it [SEG]?", "No.")])
    assert student(collate([taught])).mask_logits == [None]
