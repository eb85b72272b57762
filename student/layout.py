"""How a dialogue about a picture stands in a row of tokens: a part for each family of decoders, chosen by the config.

    Qwen     <vision> <vpatch>×N </vision>                        only with a picture; sees all of itself
             <|im_start|>user\\n{question}<|im_end|>\\n             each turn
             {answer}<|endoftext|>
    EVEv2    eve/layout.py

There is no system message; Qwen's rows have no assistant header either. Every piece is tokenised alone, so no merge crosses
a border.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

from student.config import StudentConfig
from student.pixels import patches_of
from student.vocabulary import Vocabulary

NOT_A_PATCH = -1  # patch and prompt index of text, of <vision> and of </vision>
FIRST_PATCH = 1  # <vision> is always token 0

Grid = tuple[int, int]


class Opening(NamedTuple):
    """What stands before the first question: its tokens, how many of them are there for the picture, the patch that each of
    them is, and how many of them, from the first on, see one another."""

    tokens: list[int]
    picture: int
    patch_index: np.ndarray
    block: int


class Layout(Protocol):
    """`limit` is the field of the config that says how large a picture is read."""

    limit: ClassVar[str]

    def patches(self, image_HWC: np.ndarray) -> tuple[np.ndarray, Grid]:
        """(N, 3·p·p) numbers of the picture's patches, row by row, and their grid."""
        ...

    def opening(self, grid: Grid | None) -> Opening:
        """With the picture, where there is one."""
        ...

    def asked(self, questions: Sequence[str], grid: Grid | None) -> list[list[int]]:
        """The tokens of each turn's question, up to where its answer begins."""
        ...

    def answered(self, answer: str) -> list[int]:
        """The tokens of an answer, with the one that ends it."""
        ...

    def positions(self, length: int, grid: Grid | None) -> np.ndarray:
        """(3, L) positions on the time, row and column axes."""
        ...


NOTHING = Opening([], 0, np.zeros(0, int), 0)


@dataclass(frozen=True)
class QwenLayout:
    """The rows of the 0.5B and 3B students."""

    config: StudentConfig
    vocabulary: Vocabulary
    limit = "student.max_side"

    def patches(self, image_HWC: np.ndarray) -> tuple[np.ndarray, Grid]:
        return patches_of(image_HWC, self.config.patch, self.config.max_side)

    def opening(self, grid: Grid | None) -> Opening:
        if grid is None:
            return NOTHING
        count, words = grid[0] * grid[1], self.vocabulary
        tokens = [words.vision, *[words.patch] * count, words.vision_end]
        patch_index = np.pad(np.arange(count), 1, constant_values=NOT_A_PATCH)
        return Opening(tokens, len(tokens), patch_index, block=len(tokens))

    def asked(self, questions: Sequence[str], grid: Grid | None) -> list[list[int]]:
        """Without the space around them, which the release leaves."""
        said = questions if self.config.compat == "paper" else [question.strip() for question in questions]
        return [self.vocabulary.encode(f"<|im_start|>user\n{question}<|im_end|>\n") for question in said]

    def answered(self, answer: str) -> list[int]:
        return [*self.vocabulary.encode(answer.strip()), self.vocabulary.end_of_text]

    def positions(self, length: int, grid: Grid | None) -> np.ndarray:
        """Patches share one time, text counts on from the largest."""
        positions_3L = np.tile(np.arange(length), (3, 1))
        if grid is None:
            return positions_3L
        h, w = grid
        end = FIRST_PATCH + h * w
        row_column = np.indices(grid).reshape(2, -1)
        positions_3L[:, FIRST_PATCH:end] = FIRST_PATCH
        positions_3L[1:, FIRST_PATCH:end] += row_column
        positions_3L[:, end:] = FIRST_PATCH + max(h, w) + np.arange(length - end)
        return positions_3L
