"""A student that is opened once and asked often: a question about a picture, with marks on it -> its answer, with masks.

Training knows no mark that its dialogue does not mention, so a question that leaves out all of its marks is refused rather
than asked of a student that has never met its like.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from schemas.dialogue import RESERVED, prompt_token
from schemas.errors import DataError
from schemas.regions import Rle, VisualPrompt
from student.generate import generate
from student.model import PixelSail
from student.sequence import Example, encode
from student.vocabulary import Vocabulary


@dataclass(frozen=True)
class Answer:
    """The n-th of `masks`, all of the picture's size, is for the n-th [SEG] of `text`. The n-th of `scores` is the mean
    probability of the cells of the mask grid that it covers, 0 for an empty mask: how sure the student is, not how right."""

    text: str
    masks: list[Rle]
    scores: list[float]


@dataclass(frozen=True)
class Student:
    """A network and its vocabulary, ready to be asked."""

    model: PixelSail
    vocabulary: Vocabulary

    @classmethod
    def of(cls, model: PixelSail, vocabulary: Vocabulary, *, device: str = "cpu", threads: int | None = None) -> "Student":
        """threads: how many torch uses from here on in this process; None leaves them."""
        if threads:
            torch.set_num_threads(threads)
        return cls(model.to(device).eval(), vocabulary)

    def ask(
        self,
        image_HWC: np.ndarray,
        question: str,
        prompts: Sequence[VisualPrompt] = (),
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Answer:
        """The answer to `question`, in which `<Promptk>` speaks of the k-th of `prompts`. The image is RGB uint8.

        temperature: 0 takes the likeliest token, else tokens are drawn, by numbers that follow from the seed.
        """
        _check(question, len(prompts), self.model.config.prompts)
        example = self._encoded(image_HWC, question, prompts)
        (made,) = generate(self.model, self.vocabulary, [example], max_new_tokens, temperature=temperature, seed=seed)
        masks = [Rle.of(mask) for mask in made.masks(*image_HWC.shape[:2])]
        return Answer(made.text, masks, [_sureness(logits) for logits in made.mask_logits_nhw[: len(masks)]])

    def _encoded(self, image_HWC: np.ndarray, question: str, prompts: Sequence[VisualPrompt]) -> Example:
        marked = [(number, prompt.rle.mask()) for number, prompt in enumerate(prompts)]
        turns = [(question, None)]
        try:
            example = encode(self.vocabulary, self.model.config, turns=turns, image=image_HWC, prompts=marked)
        except DataError as error:  # all but the length has been seen to
            raise DataError(error.what, "the text is too long", "Ask in fewer words.") from None
        hidden = set(range(len(prompts))) - set(example.prompt_index_L.tolist())
        if hidden:
            what = f"{prompt_token(min(hidden))} has no patch of {self.model.config.patch} pixels that shows it"
            raise DataError(what, "marks", "A patch shows one mark: move them apart, or draw it larger.")
        return example


def _check(question: str, count: int, most: int) -> None:
    """DataError where the question and its `count` marks do not belong together."""
    if not question.strip():
        raise DataError("there is no question", "text", "Write one, such as 'Please segment the red circle here.'")
    strange = [found for found in RESERVED.findall(question) if not found.startswith("<Prompt")]
    if strange:
        raise DataError(f"it says {strange[0]}, which has a meaning of its own", "text", "Write it in other words.")
    if count > most:
        raise DataError(f"{count} marks, the student knows {most}", "marks", "Point at fewer regions at a time.")
    named = {int(number) for number in re.findall(r"<Prompt(\d+)>", question)}
    known = ", ".join(map(prompt_token, range(count))) or "none"
    if strange := sorted(number for number in named if number >= count):
        raise DataError(f"it speaks of {prompt_token(strange[0])}, the marks are {known}", "text", "Mark that region too.")
    if count and not named:
        raise DataError(f"it mentions none of the marks ({known})", "text", "Write <Prompt0> where it means the first.")


def _sureness(logits_hw: Tensor) -> float:
    probability_hw = logits_hw.sigmoid()
    inside = probability_hw[probability_hw > 0.5]
    return float(inside.mean()) if len(inside) else 0.0
