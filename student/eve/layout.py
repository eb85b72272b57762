"""A dialogue as a student of EVEv2 reads it: the picture in the midst of the first question, in the words of Qwen's chat.

    <|im_start|>user\\n [class] ([patch]×w [split])×h \\n{question}<|im_end|>\\n<|im_start|>assistant\\n
    {answer}<|im_end|>
    \\n<|im_start|>user\\n{question}<|im_end|>\\n<|im_start|>assistant\\n          each further turn

Every row of patches is followed by a split token. Class, split and patch tokens are vectors and no words: what stands for
them among the ids is never read. Nothing sees what comes after it, and positions count on by one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from student.config import StudentConfig
from student.layout import NOT_A_PATCH, NOTHING, Grid, Opening
from student.pixels import Look, cut
from student.vocabulary import Vocabulary

CLASS, SPLIT = -2, -3  # patch index of the token before the picture, and of the one behind each row of patches
USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
CLIP = Look(
    Image.Resampling.BICUBIC,
    np.array((0.48145466, 0.4578275, 0.40821073), np.float32),
    np.array((0.26862954, 0.26130258, 0.27577711), np.float32),
)


def picture_size(width: int, height: int, patch: int, side: int) -> tuple[int, int]:
    """(width, height) of the picture as it is read: about the area of a square of `side`, whole patches, at least one."""
    scale = math.sqrt(width * height) / side
    across, down = (max(math.ceil(length / scale / patch), 1) * patch for length in (width, height))
    return across, down


@dataclass(frozen=True)
class EveLayout:
    """The rows of the 7B student."""

    config: StudentConfig
    vocabulary: Vocabulary
    limit = "student.eve.side"

    def patches(self, image_HWC: np.ndarray) -> tuple[np.ndarray, Grid]:
        height, width = image_HWC.shape[:2]
        size = picture_size(width, height, self.config.patch, self.config.eve.side)
        return cut(image_HWC, size, self.config.patch, CLIP)

    def opening(self, grid: Grid | None) -> Opening:
        if grid is None:
            return NOTHING
        begun = self.vocabulary.encode(USER)
        rows_hw = np.pad(np.arange(grid[0] * grid[1]).reshape(grid), ((0, 0), (0, 1)), constant_values=SPLIT)
        patch_index = np.concatenate([np.full(len(begun), NOT_A_PATCH), [CLASS], rows_hw.ravel()])
        seen = len(patch_index) - len(begun)
        return Opening(begun + [self.vocabulary.end_of_text] * seen, seen, patch_index, block=0)

    def asked(self, questions: Sequence[str], grid: Grid | None) -> list[list[int]]:
        first, later = "\n" if grid else USER, f"\n{USER}"
        begun = [f"{later if turn else first}{question.strip()}" for turn, question in enumerate(questions)]
        return [self.vocabulary.encode(f"{asked}{ASSISTANT}") for asked in begun]

    def answered(self, answer: str) -> list[int]:
        return [*self.vocabulary.encode(answer.strip()), self.vocabulary.turn_end]

    def positions(self, length: int, grid: Grid | None) -> np.ndarray:
        return np.tile(np.arange(length), (3, 1))
