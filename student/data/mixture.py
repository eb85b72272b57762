"""The mixture: how often each part of the training data is shown in an epoch, and which visit comes at each position.

A part is what a sample's task and data set are called: `segmentation/refcoco`, or `segmentation` where the dialogues are not
written apart by data set. A name in a mixture stands for all the parts that it is the beginning of, the longest name
counts. The position in training is one number, the samples seen so far; all that comes after follows from it and the seed.

Shapes: N samples of the corpus, E showings of an epoch.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from schemas.config import Config, later
from schemas.dialogue import IN_ORDER
from schemas.errors import ConfigError
from student.data.visits import Visit

KEPT_EPOCHS = 2  # the one that is shown and, where batches are made ahead, the next
WHERE = "train.mixture"


class Mixture(Config):
    """`repeats`: how often an epoch shows the samples of a part, once where nothing is said; of 2.5 it shows every sample
    twice and half of them once more, another half the next time. `weights`, in their place: an epoch has as many samples
    as there are, shared out among the named parts by weight, evenly within each name.

    With `per = "picture"` repeats are the authors': a picture of which a part has several dialogues is shown as often as one of
    which it has one, and the dialogues take turns. Conversations are shown for themselves."""

    repeats: dict[str, float] = {}
    weights: dict[str, float] = {}
    per: Literal["dialogue", "picture"] = later("dialogue")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.repeats and self.weights:
            raise ValueError("say repeats or weights, not both")
        if self.weights and self.per == "picture":
            raise ValueError('per = "picture" is for repeats: weights share out an epoch whatever a picture has')
        odd = {name: value for name, value in (self.repeats | self.weights).items() if not 0 <= value < float("inf")}
        if odd:
            raise ValueError(f"no number of times to show a sample: {odd}")
        return self

    def times(self, sizes: dict[str, int], pictures: Mapping[str, int] | None = None) -> dict[str, float]:
        """How often an epoch shows each sample of a part. sizes: samples by part; pictures: those that these are about, for
        `per = "picture"`. ConfigError for a name of no part."""
        named = self.weights or self.repeats
        lost = [name for name in named if not any(_stands_for(name, part) for part in sizes)]
        if lost:
            raise ConfigError(f"there are no samples of {', '.join(lost)}", WHERE, f"Known: {_known(sizes)}.")
        names = {part: max((n for n in named if _stands_for(n, part)), key=len, default=None) for part in sizes}
        if not self.weights:
            shown = sizes | {part: count for part, count in (pictures or {}).items() if _by_picture(part)}
            repeats = {part: 1.0 if name is None else self.repeats[name] for part, name in names.items()}
            return {part: repeats[part] * shown[part] / size if size else 0.0 for part, size in sizes.items()}
        unsaid = [part for part, name in names.items() if name is None]
        if unsaid:
            raise ConfigError(f"no weight for {', '.join(unsaid)}", f"{WHERE}.weights", "Give it one; 0 leaves it out.")
        return self._shared_out(sizes, {part: name for part, name in names.items() if name is not None})

    def _shared_out(self, sizes: Mapping[str, int], names: Mapping[str, str]) -> dict[str, float]:
        counts: Counter[str] = Counter()
        for part, name in names.items():
            counts[name] += sizes[part]
        whole = sum(self.weights[name] for name, count in counts.items() if count) or 1.0
        share = {name: self.weights[name] / whole * counts.total() / count for name, count in counts.items() if count}
        return {part: share.get(name, 0.0) for part, name in names.items()}


def _by_picture(part: str) -> bool:
    return part.partition("/")[0] not in IN_ORDER


def _stands_for(name: str, part: str) -> bool:
    return part == name or part.startswith(f"{name}/")


def _known(parts: Iterable[str]) -> str:
    """The parts, and the names that stand for several."""
    beginnings = {"/".join(part.split("/")[:end]) for part in parts for end in range(1, part.count("/") + 2)}
    return ", ".join(sorted(beginnings))


class Order:
    """Which visit comes at each position of training: epoch after epoch, each in an order drawn from the seed.

    size: N. part_N: the part of each sample, as a number; times: how often an epoch shows the samples of each part. Without
    them it shows each sample once. Raises ConfigError where an epoch shows nothing of what there is.
    """

    def __init__(self, seed: int, size: int, part_N: np.ndarray | None = None, times: Sequence[float] = (1.0,)):
        self.seed = seed
        part_N = np.zeros(size, np.intp) if part_N is None else part_N
        self._whole_N = np.floor(times).astype(np.int64)[part_N]
        self._rotations = list(filter(len, (_Rotation(seed, part_N, number, each) for number, each in enumerate(times))))
        self.size = int(self._whole_N.sum()) + sum(map(len, self._rotations))
        if size and not self.size:
            raise ConfigError(f"an epoch shows none of the {size} samples", WHERE)
        self.epoch = lru_cache(maxsize=KEPT_EPOCHS)(self._showings)

    def __getitem__(self, position: int) -> Visit:
        epoch, place = divmod(position, self.size)
        sample, showing = self.epoch(epoch)[place].tolist()
        return Visit(sample, self.seed, epoch, showing)

    def between(self, start: int, end: int) -> list[Visit]:
        """What comes at positions start … end − 1."""
        return [self[position] for position in range(start, end)]

    def _showings(self, epoch: int) -> np.ndarray:
        """(E, 2) int32: the sample and the how-manieth showing of it, in the order of the epoch."""
        counts_N = self._whole_N.copy()
        for rotation in self._rotations:
            counts_N[rotation.of(epoch)] += 1
        samples_E = np.repeat(np.arange(len(counts_N), dtype=np.int32), counts_N)
        firsts_N = np.cumsum(counts_N) - counts_N
        showings_E = np.arange(self.size) - firsts_N[samples_E]
        order_E = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        return np.stack([samples_E, showings_E.astype(np.int32)], axis=1)[order_E]


class _Rotation:
    """The samples of a part that an epoch shows once more than the rest: round and round through an order drawn once, so
    that each has its turn equally often."""

    def __init__(self, seed: int, part_N: np.ndarray, part: int, times: float):
        members = np.flatnonzero(part_N == part) if times % 1 else np.zeros(0, np.int64)
        self._count = round(times % 1 * len(members))
        self._order = np.random.default_rng([seed, part]).permutation(members) if self._count else members

    def __len__(self) -> int:
        return self._count

    def of(self, epoch: int) -> np.ndarray:
        return self._order[(epoch * self._count + np.arange(self._count)) % len(self._order)]
