"""What the teachers' tests look at: three small pictures of different shapes, and the published configs."""

from pathlib import Path

import numpy as np
import pytest

from tests.sample import sample_of


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Coloured rectangles on a coloured ground with a little noise."""
    image = np.empty((height, width, 3), dtype=np.int64)
    image[:] = rng.integers(0, 256, 3)
    for _ in range(4):
        top, left = rng.integers(0, height - 20), rng.integers(0, width - 20)
        bottom, right = top + rng.integers(15, height // 2), left + rng.integers(15, width // 2)
        image[top:bottom, left:right] = rng.integers(0, 256, 3)
    return (image + rng.integers(-8, 9, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def pictures(rng: np.random.Generator) -> list[np.ndarray]:
    return [picture(rng, 128, 128), picture(rng, 96, 160), picture(rng, 150, 70)]


@pytest.fixture(scope="session")
def teacher_configs() -> Path:
    return sample_of("teacher_configs")
