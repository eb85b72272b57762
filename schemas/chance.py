"""Random numbers that follow from names: the same for the same picture, sample or visit, in whatever order and on whichever
machine they are drawn."""

import hashlib
from typing import Any

import numpy as np


def generator(seed: int, *names: Any) -> np.random.Generator:
    """A generator that depends on `seed` and the names alone."""
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])
