"""What a teacher is to the rest of the house: an image in, numpy out, no torch in sight.

Images are HWC uint8 RGB, maps are CHW float32, masks are bool HW at the size of their image. A grid is (height, width).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

Dtype = Literal["float32", "bfloat16", "float16"]
Grid = tuple[int, int]


class Teacher(Protocol):
    """A frozen network whose inner maps a student learns from. `features` is `prepare` and `show`, one image at a time."""

    def prepare(self, image: np.ndarray) -> Any:
        """What `show` takes of an image, and whose `shape` those that are shown together share. Threads may call it at once."""
        ...

    def show(self, prepared: Sequence[Any], grids: Sequence[Grid | None]) -> list[Callable[[], np.ndarray]]:
        """For each image what waits for its map and gives it. The last bits of a map may depend on who is shown with it."""
        ...

    def features(self, images: Sequence[np.ndarray], grids: Sequence[Grid | None]) -> list[np.ndarray]:
        """One map an image, in order, resized to its grid, or as the network made it where the grid is None; an image's map
        is its own whoever stands beside it in the list."""
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
