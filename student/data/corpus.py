"""Samples, pictures and teacher features of one store, zipped by key and read at random.

Shard k of every artifact holds the same pictures in the same order. That is checked once, when a `Corpus` is opened; after
that a sample is four numbers (shard, row of the dialogue, row of the picture, part of the mixture) and nothing is searched
for. Features stay in their files until a sample is read.

Training asks for visits: `Order` (mixture.py) says which comes at each position, and `shown` (visits.py) what the visit makes
of its sample.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.artifact import Artifact
from schemas.cache import Cache
from schemas.codecs import Basis
from schemas.dialogue import IN_ORDER, Sample, Split
from schemas.errors import BrokenArtifact, DataError
from schemas.marks import Pen
from schemas.tables import revive
from student.config import StudentConfig
from student.data.features import Column, FeatureReader, Stored
from student.data.mixture import Mixture, Order
from student.data.pictures import PictureReader
from student.data.samples import encode_sample
from student.data.visits import DRAWN, Visit, shown
from student.sequence import Example, TooLong
from student.vocabulary import Vocabulary

FETCHED_AT_ONCE = 16


class Corpus:
    """The samples of one split, as examples with their picture and the features of every teacher.

    samples, images, features: complete artifacts over the same pictures; BrokenArtifact says where they disagree. bases: of
    the teachers whose principal components are stored. feature_cache: through which features come that are not on a local disk.
    `dropped` counts the samples left out, by reason: the picture or a feature failed, or, in training, the picture is also
    evaluated on. nonmatch: with "error", what failed or is too long is not left out but refused. pen: how training draws marks.
    `parts` names the parts of the mixture, and `part_N` says of which each sample is, as a number.
    """

    def __init__(
        self,
        *,
        samples: Artifact,
        images: Artifact,
        features: Mapping[str, Artifact],
        vocabulary: Vocabulary,
        config: StudentConfig,
        bases: Mapping[str, Basis] | None = None,
        split: Split = "train",
        cache_bytes: int = 256 << 20,
        feature_cache: Cache | None = None,
        nonmatch: Literal["error", "skip"] = "skip",
        pen: Pen = Pen(),
    ):
        self.vocabulary, self.config, self.split, self.pen = vocabulary, config, split, pen
        self._skips = nonmatch == "skip"
        self.features = {name: FeatureReader(artifact, feature_cache) for name, artifact in features.items()}
        bases = bases or {}
        self.columns = {name: Column(reader.spec, bases.get(name)) for name, reader in self.features.items()}
        self._pictures = PictureReader(images, cache_bytes)
        self._samples = list(samples.iterate())
        self.dropped: Counter[str] = Counter()
        self.parts = self._parts()
        self._first_lost = ""
        for artifact in (samples, *features.values()):
            _same_shards(artifact, images)
        heads = [images.read(shard, ["image_key", "error"]) for shard in range(images.shards)]
        for name, reader in self.features.items():
            for shard, head in enumerate(heads):
                _same_keys(reader.keys(shard), head.column("image_key").combine_chunks(), features[name], shard)
        leaked = self._evaluated() if split == "train" else set()
        places = [self._places(shard, head, leaked, samples) for shard, head in enumerate(heads)]
        self._index = np.concatenate([np.zeros((0, 4), np.int32), *places])
        if nonmatch == "error" and self._first_lost:
            what = f"{self.dropped.total() - self.dropped['evaluated']} samples lack something, first the {self._first_lost}"
            remedy = "`sailyard retry` what failed, or leave the samples out with train.nonmatch = 'skip'."
            raise DataError(what, samples.where, remedy)
        self._is_remote = not all(artifact.folder.is_local for artifact in (images, *features.values()))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> Example:
        """Sample `number` as its first visit shows it."""
        return self.example(Visit(number))

    def example(self, visit: Visit) -> Example:
        """The sample as the visit shows it, encoded; DataError names a sample that cannot be."""
        return self.dialogue(visit, self.maps(visit.sample))

    def dialogue(self, visit: Visit, maps: Mapping[str, Stored] | None = None) -> Example:
        """The example of a visit with these features, or without any. Evaluation shows every sample as it is."""
        sample = self.sample(visit.sample)
        if self.split == "train":
            sample = shown(sample, visit, self.pen, self.config.prompts)
        return encode_sample(self.vocabulary, self.config, sample, self.picture(visit.sample), maps)

    def fitting(self, visit: Visit, maps: Mapping[str, Stored] | None = None) -> Example | None:
        """The same; None where this visit's first turn is too long for the student, unless that is refused."""
        try:
            return self.dialogue(visit, maps)
        except TooLong:
            if self._skips:
                return None
            raise

    def maps(self, number: int) -> dict[str, Stored]:
        """The stored features of the sample's picture, by teacher."""
        shard, _, row, _ = self._index[number].tolist()
        return {name: reader.read(shard, row) for name, reader in self.features.items()}

    def examples(self, visits: Sequence[Visit]) -> list[Example]:
        """These visits, in order, without those that are too long; what is left out here is left out wherever it is asked for.
        Of a remote store many are fetched at once: it is slow to answer, not to send."""
        made = lambda visit: self.fitting(visit, self.maps(visit.sample))  # noqa: E731
        if not self._is_remote:
            return list(filter(None, map(made, visits)))
        with ThreadPoolExecutor(FETCHED_AT_ONCE, thread_name_prefix="fetch") as pool:
            return list(filter(None, pool.map(made, visits)))

    def order(self, seed: int, mixture: Mixture) -> Order:
        """Which visit comes at each position of training. ConfigError where the mixture names what is not there."""
        sizes = dict(zip(self.parts, np.bincount(self.part_N, minlength=len(self.parts)).tolist(), strict=True))
        unit_N = self._by_picture() if mixture.per == "picture" else None
        return Order(seed, len(self), self.part_N, list(mixture.times(sizes).values()), unit_N)

    def _by_picture(self) -> np.ndarray:
        """(N,): the same number for the samples of a part that are of one picture, but for those that stay in their order."""
        alone = np.array([part.partition("/")[0] in IN_ORDER for part in self.parts], bool)[self.part_N]
        shard, _, picture, part = self._index.T
        own = np.where(alone, np.arange(len(self)) + 1, 0)
        return np.unique(np.stack([shard, picture, part, own], axis=1), axis=0, return_inverse=True)[1].ravel()

    @property
    def part_N(self) -> np.ndarray:
        return self._index[:, 3]

    def holdings(self) -> np.ndarray:
        """(N, 3): how many turns, masks and prompts a visit shows of each sample."""
        names, held_N3 = ("turns", "masks", "prompts"), np.zeros((len(self), 3), np.int64)
        borders = np.searchsorted(self._index[:, 0], np.arange(len(self._samples) + 1))
        for rows, (begin, end) in zip(self._samples, pairwise(borders), strict=True):
            here = slice(begin, end)
            lengths_n3 = np.stack([pc.list_value_length(rows.column(name)).to_numpy() for name in names], axis=1)
            lengths_n3[_has_references(rows), :2] = DRAWN
            held_N3[here] = lengths_n3[self._index[here, 1]]
        return held_N3

    def sample(self, number: int) -> Sample:
        shard, row, _, _ = self._index[number].tolist()
        return revive(Sample, self._samples[shard].slice(row, 1).to_pylist()[0])

    def picture(self, number: int) -> np.ndarray:
        """HWC uint8 RGB."""
        shard, _, row, _ = self._index[number].tolist()
        return self._pictures.read(shard, row)

    def _evaluated(self) -> set[str]:
        """Keys of the pictures that some evaluation sample asks about."""
        rows = ((table.column("image_key").to_pylist(), table.column("split").to_pylist()) for table in self._samples)
        return {key for keys, splits in rows for key, split in zip(keys, splits, strict=True) if split == "evaluation"}

    def _parts(self) -> list[str]:
        """What the parts of the split are called, in order of name."""
        rows = (_heads(table) for table in self._samples)
        return sorted({_part(task, source) for shard in rows for _, split, task, source in shard if split == self.split})

    def _places(self, shard: int, head: pa.Table, leaked: set[str], samples: Artifact) -> np.ndarray:
        """(n, 4) int32: shard, row of the dialogue, row of its picture and part, of the split's samples that can be used."""
        row_of = {key: row for row, key in enumerate(head.column("image_key").to_pylist())}
        _in_order(self._samples[shard].column("image_key").to_pylist(), row_of, samples, shard)
        failed = head.column("error").is_valid().to_numpy()
        places = []
        for number, (key, split, task, source) in enumerate(_heads(self._samples[shard])):
            if split == self.split:
                reason = "evaluated" if key in leaked else self._unusable(shard, row_of[key], failed)
                self.dropped.update([reason] if reason else [])
                places += [] if reason else [(shard, number, row_of[key], self.parts.index(_part(task, source)))]
                if reason not in ("", "evaluated"):
                    self._first_lost = self._first_lost or f"{reason} of {key} in shard {shard}, row {row_of[key]}"
        return np.array(places, np.int32).reshape(-1, 4)

    def _unusable(self, shard: int, row: int, failed: np.ndarray) -> str:
        """Which of the picture and its features is not there; empty when all are."""
        if failed[row]:
            return "picture"
        return next((name for name, reader in self.features.items() if not reader.is_present(shard, row)), "")


def _has_references(samples: pa.Table) -> np.ndarray:
    if "references" not in samples.column_names:  # it came later
        return np.zeros(len(samples), bool)
    return pc.fill_null(pc.list_value_length(samples.column("references")), 0).to_numpy() > 0


def _heads(samples: pa.Table) -> Iterator[tuple[str, str, str, str]]:
    """(image_key, split, task, source) of every sample of a shard."""
    return zip(*(samples.column(name).to_pylist() for name in ("image_key", "split", "task", "source")), strict=True)


def _part(task: str, source: str) -> str:
    return f"{task}/{source}" if source else task


def _same_shards(artifact: Artifact, images: Artifact) -> None:
    if artifact.shards != images.shards:
        what = f"{artifact.shards} shards, the pictures have {images.shards}"
        raise BrokenArtifact(what, artifact.where, "Make it again from these pictures.")


def _same_keys(keys: pa.StringArray, expected: pa.StringArray, artifact: Artifact, shard: int) -> None:
    """Refuse a feature shard that is not row for row about the pictures of the shard."""
    if len(keys) != len(expected):
        what = f"shard {shard} has {len(keys)} rows, the pictures {len(expected)}"
        raise BrokenArtifact(what, artifact.where, "Run `sailyard verify`.")
    if not keys.equals(expected):
        row = pc.index(pc.equal(keys, expected), False).as_py()
        what = f"shard {shard}, row {row} is of picture {keys[row]}, the pictures have {expected[row]} there"
        raise BrokenArtifact(what, artifact.where, "Run `sailyard verify`.")


def _in_order(keys: list[str], row_of: Mapping[str, int], samples: Artifact, shard: int) -> None:
    """Refuse a sample shard whose dialogues are not about the shard's pictures, in the order of the pictures."""
    latest = 0
    for row, key in enumerate(keys):
        place = row_of.get(key, -1)
        if place < latest:
            found = "is not in this shard of the pictures" if place < 0 else "comes before the picture of the row above"
            raise BrokenArtifact(f"shard {shard}, row {row}: picture {key} {found}", samples.where, "Run `sailyard verify`.")
        latest = place
