"""A look at a student on its way: a few training dialogues, asked of it as it is now, as one picture."""

from itertools import chain, zip_longest
from typing import Any

import numpy as np
from PIL import Image

from schemas.dialogue import SEG, Sample
from schemas.regions import Rle
from stages.report.pictures import TILE, answer_tile, laid_out

COUNT, MOST_TOKENS = 4, 64


class Look:
    """The same dialogues at each look, of every part of the corpus in turn; the last turn of each is asked."""

    def __init__(self, corpus: Any, count: int = COUNT):
        self.corpus = corpus
        members = [np.flatnonzero(corpus.part_N == part)[:count].tolist() for part in range(len(corpus.parts))]
        in_turn = [number for number in chain(*zip_longest(*members)) if number is not None]
        self.numbers: list[int] = in_turn[:count]

    def __call__(self, step: int, student: Any) -> bytes:
        """A PNG of what the student answers."""
        from student.data import encode_question
        from student.generate import generate

        corpus = self.corpus
        samples, pictures = map(corpus.sample, self.numbers), map(corpus.picture, self.numbers)
        asked = list(zip(samples, pictures, strict=True))
        examples = [encode_question(corpus.vocabulary, corpus.config, *pair) for pair in asked]
        answers = generate(student, corpus.vocabulary, examples, MOST_TOKENS)
        return laid_out([_tile(*pair, answer) for pair, answer in zip(asked, answers, strict=True)], f"step {step}")


def _tile(sample: Sample, image_HWC: np.ndarray, answer: Any) -> tuple[Image.Image, str]:
    turn, given = sample.turns[-1], sum(turn.answer.count(SEG) for turn in sample.turns[:-1])
    masks = [Rle.of(mask) for mask in answer.masks(*image_HWC.shape[:2])]
    picture = Image.fromarray(image_HWC)
    picture.thumbnail((TILE, TILE))
    return answer_tile(picture, turn.question, turn.answer, answer.text, targets=sample.masks[given:], masks=masks)
