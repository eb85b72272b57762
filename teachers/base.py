"""What a teacher is to the rest of the house: a config that names a network and its weights; an image in, numpy out.

Images are HWC uint8 RGB, maps are CHW float32, masks are bool HW at the size of their image. A grid is (height, width).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import model_validator

from schemas.config import Config, execution

Dtype = Literal["float32", "bfloat16", "float16"]
Grid = tuple[int, int]
TAUGHT = "taught"


class NetworkConfig(Config):
    """A frozen network. `weights` picks the defaults of the other fields, which `presets` has for each name that it knows;
    "random" is a micro network, whose weights are drawn from `seed`; "taught" one that the project itself teaches."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    kind: str
    weights: str = "random"
    folder: str | None = execution(None)
    seed: int = 0
    dtype: Dtype = "bfloat16"

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        return cls.presets.get(data.get("weights", "random"), {}) | data if isinstance(data, dict) else data

    @property
    def is_random(self) -> bool:
        return self.weights == "random"

    @property
    def is_taught(self) -> bool:
        """Its weights are an artifact of the project, which all that is made with them has among its inputs."""
        return self.weights == TAUGHT


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
