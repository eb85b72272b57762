"""Samples, pictures and teacher features of one store, zipped by key and read at random.

Shard k of every artifact holds the same pictures in the same order. That is checked once, when a `Corpus` is opened; after
that a sample is three numbers (shard, row of the dialogue, row of the picture) and nothing is searched for. Features stay
in their mapped files until a sample is read.

The position in training is one number, the samples seen so far: `Order` says which sample comes at each position.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from schemas.artifact import Artifact
from schemas.dialogue import SEG, Sample, Split
from schemas.errors import BrokenArtifact, DataError
from schemas.pictures import decode
from schemas.tables import revive
from student.config import StudentConfig
from student.sequence import Example, encode
from student.vocabulary import Vocabulary

ItemT = TypeVar("ItemT")
MadeT = TypeVar("MadeT")


class FeatureReader:
    """One teacher's feature maps, read straight from the files they lie in (on an object store: from memory)."""

    def __init__(self, artifact: Artifact):
        if artifact.table is None or artifact.table.spec is None:
            raise DataError("holds no teacher features", artifact.where)
        self.spec = artifact.table.spec
        tables = [artifact.read(number, ["image_key", "feature"]) for number in range(artifact.shards)]
        self.keys = [table.column("image_key").to_pylist() for table in tables]
        self.present = [table.column("feature").is_valid().to_numpy() for table in tables]
        self._bits = [self._mapped(table.column("feature")) for table in tables]

    def _mapped(self, column: pa.ChunkedArray) -> np.ndarray:
        """(rows, C, h, w) bit patterns, a view of the column's own buffer. A shard is written as one chunk, or none."""
        if not len(column):
            return np.zeros((0, *self.spec.shape), "<u2")
        (chunk,) = column.chunks
        start, size = chunk.offset * self.spec.row_bytes, len(chunk) * self.spec.row_bytes
        return np.frombuffer(chunk.buffers()[1], "<u2", size // 2, start).reshape(len(chunk), *self.spec.shape)

    def bits(self, shard: int, row: int) -> np.ndarray:
        """(C, h, w) uint16 bfloat16 patterns; a view, nothing is copied. Meaningless where `present` is False."""
        return self._bits[shard][row]

    def read(self, shard: int, row: int) -> Tensor:
        """(C, h, w) bfloat16, its own memory."""
        return torch.from_numpy(self._bits[shard][row].copy()).view(torch.bfloat16)


class PictureReader:
    """Decoded pictures, the latest `cache_bytes` of them kept. Threads may share one."""

    def __init__(self, images: Artifact, cache_bytes: int):
        self._images, self._capacity, self._used = images, cache_bytes, 0
        self._footers: dict[int, pq.FileMetaData] = {}
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._lock = Lock()

    def read(self, shard: int, row: int) -> np.ndarray:
        """HWC uint8 RGB, upright; not to be written to."""
        place = shard, row
        with self._lock:
            if place in self._cache:
                self._cache.move_to_end(place)
                return self._cache[place]
        picture = decode(self._bytes(shard, row))
        with self._lock:
            self._keep(place, picture)
        return picture

    def _bytes(self, shard: int, row: int) -> bytes:
        """Each picture is a row group of its own, so one is read without its neighbours. Footers are kept, files are not:
        a store may have more shards than a process may open."""
        with self._images.folder.open(self._images.shard_name(shard)) as file:
            parquet = pq.ParquetFile(file, metadata=self._footers.get(shard))
            self._footers[shard] = parquet.metadata
            return parquet.read_row_group(row, columns=["bytes"]).column(0)[0].as_py()

    def _keep(self, place: tuple[int, int], picture: np.ndarray) -> None:
        if place in self._cache or picture.nbytes > self._capacity:
            return
        self._cache[place] = picture
        self._used += picture.nbytes
        while self._used > self._capacity:
            self._used -= self._cache.popitem(last=False)[1].nbytes


class Corpus:
    """The samples of one split, as examples with their picture and the features of every teacher.

    samples, images, features: complete artifacts over the same pictures; BrokenArtifact says where they disagree.
    `dropped` counts the samples left out, by reason: the picture or a feature failed, or, in training, the picture is also
    evaluated on.
    """

    def __init__(
        self,
        *,
        samples: Artifact,
        images: Artifact,
        features: Mapping[str, Artifact],
        vocabulary: Vocabulary,
        config: StudentConfig,
        split: Split = "train",
        cache_bytes: int = 256 << 20,
    ):
        self.vocabulary, self.config = vocabulary, config
        self.features = {name: FeatureReader(artifact) for name, artifact in features.items()}
        self._pictures = PictureReader(images, cache_bytes)
        self._samples = list(samples.iterate())
        self.dropped: Counter[str] = Counter()
        for artifact in (samples, *features.values()):
            _same_shards(artifact, images)
        heads = [images.read(shard, ["image_key", "error"]) for shard in range(images.shards)]
        for name, reader in self.features.items():
            for shard, head in enumerate(heads):
                _same_keys(reader.keys[shard], head.column("image_key").to_pylist(), features[name], shard)
        leaked = self._evaluated() if split == "train" else set()
        places = [self._places(shard, head, split, leaked, samples) for shard, head in enumerate(heads)]
        self._index = np.concatenate([np.zeros((0, 3), np.int64), *places])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> Example:
        """Sample `number`, encoded; DataError names a sample that cannot be."""
        shard, _, row = self._index[number].tolist()
        features = {name: reader.read(shard, row) for name, reader in self.features.items()}
        return encode_sample(self.vocabulary, self.config, self.sample(number), self.picture(number), features)

    def sample(self, number: int) -> Sample:
        shard, row, _ = self._index[number].tolist()
        return revive(Sample, self._samples[shard].slice(row, 1).to_pylist()[0])

    def picture(self, number: int) -> np.ndarray:
        """HWC uint8 RGB."""
        shard, _, row = self._index[number].tolist()
        return self._pictures.read(shard, row)

    def _evaluated(self) -> set[str]:
        """Keys of the pictures that some evaluation sample asks about."""
        rows = ((table.column("image_key").to_pylist(), table.column("split").to_pylist()) for table in self._samples)
        return {key for keys, splits in rows for key, split in zip(keys, splits, strict=True) if split == "evaluation"}

    def _places(self, shard: int, head: pa.Table, split: Split, leaked: set[str], samples: Artifact) -> np.ndarray:
        """(n, 3): shard, row of the dialogue, row of its picture, for the samples of the split that can be used."""
        row_of = {key: row for row, key in enumerate(head.column("image_key").to_pylist())}
        keys = self._samples[shard].column("image_key").to_pylist()
        _in_order(keys, row_of, samples, shard)
        failed = head.column("error").is_valid().to_numpy()
        places = []
        for number, (key, its_split) in enumerate(zip(keys, self._samples[shard].column("split").to_pylist(), strict=True)):
            if its_split == split:
                reason = self._unusable(shard, row_of[key], failed) or ("evaluated" if key in leaked else "")
                self.dropped.update([reason] if reason else [])
                places += [] if reason else [(shard, number, row_of[key])]
        return np.array(places, np.int64).reshape(-1, 3)

    def _unusable(self, shard: int, row: int, failed: np.ndarray) -> str:
        """Which of the picture and its features is not there; empty when all are."""
        if failed[row]:
            return "picture"
        return next((name for name, reader in self.features.items() if not reader.present[shard][row]), "")


def encode_sample(
    vocabulary: Vocabulary, config: StudentConfig, sample: Sample, image_HWC: np.ndarray, features: dict[str, Any] | None = None
) -> Example:
    """The whole dialogue, its answers supervised."""
    return encode(
        vocabulary,
        config,
        turns=[(turn.question, turn.answer) for turn in sample.turns],
        image=image_HWC,
        prompts=[(slot.index, slot.rle.mask()) for slot in sample.prompts],
        masks=[rle.mask() for rle in sample.masks],
        features=features,
        sample_id=sample.sample_id,
    )


def encode_question(
    vocabulary: Vocabulary, config: StudentConfig, sample: Sample, image_HWC: np.ndarray, prefix_answer: str | None = None
) -> Example:
    """The dialogue up to its last question, for the student to answer; the answer may be begun by `prefix_answer`."""
    *earlier, last = sample.turns
    given = sum(turn.answer.count(SEG) for turn in earlier)
    return encode(
        vocabulary,
        config,
        turns=[*((turn.question, turn.answer) for turn in earlier), (last.question, None)],
        image=image_HWC,
        prompts=[(slot.index, slot.rle.mask()) for slot in sample.prompts],
        masks=[rle.mask() for rle in sample.masks[:given]],
        sample_id=sample.sample_id,
        prefix_answer=prefix_answer,
    )


def _same_shards(artifact: Artifact, images: Artifact) -> None:
    if artifact.shards != images.shards:
        what = f"{artifact.shards} shards, the pictures have {images.shards}"
        raise BrokenArtifact(what, artifact.where, "Make it again from these pictures.")


def _same_keys(keys: list[str], expected: list[str], artifact: Artifact, shard: int) -> None:
    """Refuse a feature shard that is not row for row about the pictures of the shard."""
    if len(keys) != len(expected):
        what = f"shard {shard} has {len(keys)} rows, the pictures {len(expected)}"
        raise BrokenArtifact(what, artifact.where, "Run `sailyard verify`.")
    for row, (key, wanted) in enumerate(zip(keys, expected, strict=True)):
        if key != wanted:
            what = f"shard {shard}, row {row} is of picture {key}, the pictures have {wanted} there"
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


@dataclass(frozen=True)
class Order:
    """Which of `size` samples comes at each position of training: epoch after epoch, each in an order drawn from the seed."""

    seed: int
    size: int

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        return int(_permutation(self.seed, epoch, self.size)[place])

    def between(self, start: int, end: int) -> list[int]:
        """The samples at positions start … end − 1."""
        return [self[position] for position in range(start, end)]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


def ahead(make: Callable[[ItemT], MadeT], items: Iterable[ItemT], *, depth: int = 2, threads: int = 1) -> Generator[MadeT]:
    """`make(item)` for each item in turn, made by other threads up to `depth` items early.

    What `make` raises is raised here, in its turn. Closing the iterator stops the threads.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    waiting: deque[Future[MadeT]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
