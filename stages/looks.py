"""A look at a student on its way: a few training dialogues, asked of it as it is now, as one picture."""

from itertools import chain, islice, zip_longest
from typing import Any

import numpy as np
from PIL import Image

from schemas.dialogue import SEG, Sample
from schemas.regions import Rle
from stages.report.pictures import TILE, answer_tile, laid_out

COUNT, MOST_TOKENS = 4, 64


class Look:
    """The same dialogues at each look, of every part of the corpus in turn; the last turn of each is asked. What is too long to
    be asked is passed over."""

    def __init__(self, corpus: Any, count: int = COUNT):
        self.corpus, self.count = corpus, count
        members = [np.flatnonzero(corpus.part_N == part)[:count].tolist() for part in range(len(corpus.parts))]
        self.numbers: list[int] = [number for number in chain(*zip_longest(*members)) if number is not None]

    def __call__(self, step: int, student: Any) -> bytes:
        """A PNG of what the student answers."""
        from student.generate import generate

        asked = list(islice(filter(None, map(self._asked, self.numbers)), self.count))
        answers = generate(student, self.corpus.vocabulary, [example for *_, example in asked], MOST_TOKENS)
        tiles = [_tile(sample, picture, answer) for (sample, picture, _), answer in zip(asked, answers, strict=True)]
        return laid_out(tiles, f"step {step}")

    def _asked(self, number: int) -> tuple[Sample, np.ndarray, Any] | None:
        """A sample, its picture, and both as a question; None where it is too long."""
        from student.data.samples import encode_question
        from student.data.visits import Visit, drawn
        from student.sequence import TooLong

        sample, picture = drawn(self.corpus.sample(number), Visit(number)), self.corpus.picture(number)
        try:
            example = encode_question(self.corpus.vocabulary, self.corpus.config, sample, picture)
        except TooLong:
            return None
        return None if example.dropped else (sample, picture, example)


def _tile(sample: Sample, image_HWC: np.ndarray, answer: Any) -> tuple[Image.Image, str]:
    turn, given = sample.turns[-1], sum(turn.answer.count(SEG) for turn in sample.turns[:-1])
    masks = [Rle.of(mask) for mask in answer.masks(*image_HWC.shape[:2])]
    picture = Image.fromarray(image_HWC)
    picture.thumbnail((TILE, TILE))
    return answer_tile(picture, turn.question, turn.answer, answer.text, targets=sample.masks[given:], masks=masks)
