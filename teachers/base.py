"""What a teacher is to the rest of the house: an image in, numpy out, no torch in sight.

Images are HWC uint8 RGB, maps are CHW float32, masks are bool HW at the size of their image.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Teacher(Protocol):
    """A frozen network whose inner maps a student learns from."""

    def features(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """One map an image, in order, on the grid of the teacher's `FeatureSpec`; an image's map is its own whoever
        stands beside it in the list."""
        ...


@dataclass(frozen=True)
class Proposal:
    """A region that a segmenter found; `category` is empty where the segmenter knows none."""

    mask_HW: np.ndarray
    score: float
    category: str
    is_thing: bool


class Segmenter(Protocol):
    """A frozen network that cuts an image into regions."""

    def segments(self, image: np.ndarray) -> list[Proposal]:
        """The regions of one image, best first; none of them is empty."""
        ...
