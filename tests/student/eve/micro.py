"""The smallest student in the layout of EVEv2, and samples for it."""

from typing import Any

import numpy as np
import torch

from student.config import StudentConfig
from student.model import PixelSail
from student.sequence import Example
from tests.student.micro import micro_config, micro_vocabulary, pointed, spoken

EVE = {"patch": 8, "eve": {"channels": 6, "side": 24}}


def eve_config(**over: Any) -> StudentConfig:
    return micro_config(**(EVE | over))


def eve_student(seed: int = 0, **over: Any) -> PixelSail:
    config = eve_config(**over)
    return PixelSail(config, micro_vocabulary(config.prompts), torch.Generator().manual_seed(seed))


def eve_mixed(rng: np.random.Generator) -> list[Example]:
    """Pictures of three shapes, with masks and without, and a sample without a picture in between."""
    config = eve_config()
    return [
        pointed(rng, 32, 48, 2, config=config),
        spoken(config=config),
        pointed(rng, 48, 20, 0, config=config),
        pointed(rng, 30, 30, 1, config=config),
    ]
