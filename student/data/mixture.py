"""The mixture: how often each part of the training data is shown in an epoch, and which visit comes at each position.

A part is what a sample's task and data set are called: `segmentation/refcoco`, or `segmentation` where the dialogues are not
written apart by data set. A name in a mixture stands for all the parts that it is the beginning of, the longest name
counts. The position in training is one number, the samples seen so far; all that comes after follows from it and the seed.

Shapes: N samples of the corpus, U units: samples, or groups of them that take turns. E showings of an epoch.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from schemas.config import Config, later
from schemas.errors import ConfigError
from student.data.visits import Visit

KEPT_EPOCHS = 2  # the one that is shown and, where batches are made ahead, the next
WHERE = "train.mixture"


class Mixture(Config):
    """`repeats`: how often an epoch shows the samples of a part, once where nothing is said; of 2.5 it shows every sample
    twice and half of them once more, another half the next time. `weights`, in their place: an epoch has as many samples
    as there are, shared out among the named parts by weight, evenly within each name.

    With `per = "picture"` repeats are the authors': a picture of which a part has several dialogues is shown as often as one of
    which it has one, and the dialogues take turns. Conversations are each shown for themselves."""

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

    def times(self, sizes: Mapping[str, int]) -> dict[str, float]:
        """How often an epoch shows each sample or picture of a part. sizes: samples by part. ConfigError for a name of none."""
        named = self.weights or self.repeats
        lost = [name for name in named if not any(_stands_for(name, part) for part in sizes)]
        if lost:
            raise ConfigError(f"there are no samples of {', '.join(lost)}", WHERE, f"Known: {_known(sizes)}.")
        names = {part: max((n for n in named if _stands_for(n, part)), key=len, default=None) for part in sizes}
        if not self.weights:
            return {part: 1.0 if name is None else self.repeats[name] for part, name in names.items()}
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


def _stands_for(name: str, part: str) -> bool:
    return part == name or part.startswith(f"{name}/")


def _known(parts: Iterable[str]) -> str:
    """The parts, and the names that stand for several."""
    beginnings = {"/".join(part.split("/")[:end]) for part in parts for end in range(1, part.count("/") + 2)}
    return ", ".join(sorted(beginnings))


class Order:
    """Which visit comes at each position of training: epoch after epoch, each in an order drawn from the seed.

    size: N. part_N: the part of each sample, as a number; times: how often an epoch shows the units of each part, once where
    nothing is said. unit_N: the unit of each sample, as a number; each is one of its own where nothing is said. Those of a unit
    are of one part. Raises ConfigError where an epoch shows nothing of what there is.
    """

    def __init__(
        self,
        seed: int,
        size: int,
        part_N: np.ndarray | None = None,
        times: Sequence[float] = (1.0,),
        unit_N: np.ndarray | None = None,
    ):
        self.seed = seed
        unit_N = np.arange(size) if unit_N is None else unit_N
        self._members_N = np.argsort(unit_N, kind="stable").astype(np.int32)
        self._held_U = np.bincount(unit_N)
        self._firsts_U = np.cumsum(self._held_U) - self._held_U
        part_U = np.zeros(len(self._held_U), np.intp) if part_N is None else part_N[self._members_N[self._firsts_U]]
        self._whole_U = np.floor(times).astype(np.int64)[part_U]
        self._rotations = list(filter(len, (_Rotation(seed, part_U, number, each) for number, each in enumerate(times))))
        self.size = int(self._whole_U.sum()) + sum(map(len, self._rotations))
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
        """(E, 2) int32: the sample, and the how-manieth showing of its unit it is, in the order of the epoch."""
        counts_U, before_U = self._whole_U.copy(), epoch * self._whole_U
        for rotation in self._rotations:
            counts_U[rotation.of(epoch)] += 1
            before_U[rotation.members] += rotation.before(epoch)
        units_E = np.repeat(np.arange(len(counts_U)), counts_U)
        showings_E = np.arange(self.size) - (np.cumsum(counts_U) - counts_U)[units_E]
        turns_E = (before_U[units_E] + showings_E) % self._held_U[units_E]
        samples_E = self._members_N[self._firsts_U[units_E] + turns_E]
        order_E = np.random.default_rng([self.seed, epoch]).permutation(self.size)
        return np.stack([samples_E, showings_E.astype(np.int32)], axis=1)[order_E]


class _Rotation:
    """The units of a part that an epoch shows once more than the rest: round and round through an order drawn once, so that
    each has its turn equally often."""

    def __init__(self, seed: int, part_U: np.ndarray, part: int, times: float):
        members = np.flatnonzero(part_U == part) if times % 1 else np.zeros(0, np.int64)
        self._count = round(times % 1 * len(members))
        self.members = np.random.default_rng([seed, part]).permutation(members) if self._count else members

    def __len__(self) -> int:
        return self._count

    def of(self, epoch: int) -> np.ndarray:
        return self.members[(epoch * self._count + np.arange(self._count)) % len(self.members)]

    def before(self, epoch: int) -> np.ndarray:
        """How many turns each of the members has had before the epoch."""
        rounds, rest = divmod(epoch * self._count, len(self.members))
        return rounds + (np.arange(len(self.members)) < rest)
