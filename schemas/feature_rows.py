"""The rows of a table of features one by one, from a local file or an object store, without the rest of their shard.

A shard is one Arrow record batch. What is small in it (keys, grids, checksums, where each row begins) is read once and kept;
the rows are all but a thousandth of it and stay where they are. Local shards are mapped, some of them at a time, for a store
may have more than a process may open. A row of a remote one is one request, for its bytes alone, unless a `Cache` has it.

A row is held against its checksum whenever it comes from afar or from the cache; from a local shard once a process, for that
takes far longer than to copy it.
"""

import mmap
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from schemas.artifact import Artifact
from schemas.cache import Cache
from schemas.errors import BrokenArtifact, DataError
from schemas.features import FeatureSpec
from schemas.grids import Size
from schemas.storage import Folder

PIECE = 1 << 16  # of either end of a shard: most often all that is needed of it
MAPPED_AT_ONCE = 256
_REQUESTS_AT_ONCE = 32


@dataclass(frozen=True)
class ShardIndex:
    """Of each row n: its key, its grid (height, width), its checksum, whether it is there, and from where to where in the file
    it lies. `checked` is set by whoever has read it whole."""

    keys: pa.StringArray
    grids: list[Size]
    crcs_n: np.ndarray
    present_n: np.ndarray
    starts_n: np.ndarray
    checked_n: np.ndarray


class FeatureRows:
    """All rows of an artifact of features. Threads may share one."""

    def __init__(self, artifact: Artifact, cache: Cache | None = None):
        self._artifact, self._cache = artifact, cache
        self.spec = spec_of(artifact)
        self.shards = list(_indices(artifact))
        self._is_local = artifact.folder.is_local
        self._mapped = lru_cache(MAPPED_AT_ONCE)(_mapped)
        self._paths = [artifact.folder.path(artifact.shard_name(number)) for number in range(artifact.shards)]

    def read(self, shard: int, row: int) -> np.ndarray:
        """The bytes of a row, in memory of their own. Raises BrokenArtifact where they are not those that were written, and
        where none were."""
        index = self.shards[shard]
        if not index.present_n[row]:
            raise self._broken(shard, row, "holds no feature")
        try:
            found = (self._copied if self._is_local else self._fetched)(self._paths[shard], index, row)
        except FileNotFoundError:
            raise _unreadable(self._artifact, shard, "it is not there") from None
        except EOFError:
            raise self._broken(shard, row, "its file ends before it") from None
        if found is None:
            raise self._broken(shard, row, "its bytes do not give its checksum")
        return found

    def _copied(self, path: str, index: ShardIndex, row: int) -> np.ndarray | None:
        """Out of the mapped file."""
        start, end = index.starts_n[row : row + 2].tolist()
        mapped, bytes_n = self._mapped(path)
        if mapped.size() < end:  # of the file as it now is: to touch what was cut off would end the process
            raise EOFError
        found = bytes_n[start:end].copy()
        if not index.checked_n[row]:
            index.checked_n[row] = zlib.crc32(found.data) == index.crcs_n[row]
        return found if index.checked_n[row] else None

    def _fetched(self, path: str, index: ShardIndex, row: int) -> np.ndarray | None:
        """From the cache or from afar. What lies spoiled in the cache is fetched again."""
        (start, end), crc = index.starts_n[row : row + 2].tolist(), index.crcs_n[row]
        key, found = f"{self._artifact.where} {path} {start} {end} {crc}", np.empty(end - start, np.uint8)
        if self._cache and self._cache.read(key, found) and zlib.crc32(found.data) == crc:
            return found
        data = self._artifact.folder.fs.cat_file(path, start=start, end=end)
        if len(data) != len(found) or zlib.crc32(data) != crc:
            return None
        if self._cache:
            self._cache.write(key, data)
        found[:] = np.frombuffer(data, np.uint8)
        return found

    def _broken(self, shard: int, row: int, what: str) -> BrokenArtifact:
        key = self.shards[shard].keys[row].as_py()
        remedy = "Run `sailyard verify CONFIG --heal`."
        return BrokenArtifact(f"shard {shard}, row {row} (picture {key}): {what}", self._artifact.where, remedy)


def spec_of(artifact: Artifact) -> FeatureSpec:
    if artifact.table is None or artifact.table.spec is None:
        raise DataError("holds no teacher features", artifact.where)
    return artifact.table.spec


def _mapped(path: str) -> tuple[mmap.mmap, np.ndarray]:
    """The mapping of a file, and its bytes."""
    with open(path, "rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError:  # nothing is left of it
            raise EOFError from None
    return mapped, np.frombuffer(mapped, np.uint8)


def _indices(artifact: Artifact) -> Iterator[ShardIndex]:
    sizes = artifact.folder.names()

    def index(number: int) -> ShardIndex:
        try:
            name = artifact.shard_name(number)
            return _index(artifact.folder, name, sizes[name])
        except (KeyError, FileNotFoundError):
            raise _unreadable(artifact, number, "it is not there") from None
        except (pa.ArrowInvalid, ValueError) as error:
            raise _unreadable(artifact, number, str(error)) from None

    if artifact.folder.is_local:
        yield from map(index, range(artifact.shards))
    else:
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            yield from pool.map(index, range(artifact.shards))


def _unreadable(artifact: Artifact, number: int, why: str) -> BrokenArtifact:
    return BrokenArtifact(f"shard {number} cannot be read: {why}", artifact.where, "Run `sailyard verify`.")


def _index(folder: Folder, name: str, size: int) -> ShardIndex:
    """Both ends of the file are put where they belong in an empty image of it; Arrow then says where the columns lie without
    a look at those rows that are not there. Only pages that are written to take memory."""
    image = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def fill(start: int, end: int) -> None:
        image[start:end] = folder.fs.cat_file(folder.path(name), start=start, end=end)

    head = min(size, PIECE)
    fill(0, head)
    if size > head:
        fill(max(head, size - PIECE), size)
    whole = pa.py_buffer(image)
    file = pa.ipc.open_file(whole)
    if not file.num_record_batches:
        return _empty()
    batch = file.get_batch(0)
    _, _, values = batch.column("feature").buffers()
    values_at = values.address - whole.address if values else size
    if values_at > head:
        fill(head, values_at)
    return _index_of(batch, values_at, size)


def _index_of(batch: pa.RecordBatch, values_at: int, size: int) -> ShardIndex:
    """In memory of its own: the image of the file is not kept."""
    column = batch.column("feature")
    starts_n = values_at + np.frombuffer(column.buffers()[1], np.int64)[: len(column) + 1]
    if (np.diff(starts_n) < 0).any() or starts_n[-1] > size:
        raise ValueError("its rows do not lie within it")
    height, width, crcs_n = (batch.column(name).fill_null(0).to_numpy() for name in ("height", "width", "crc"))
    grids: dict[Size, Size] = {}  # few in number, so each is kept once
    return ShardIndex(
        keys=pa.array(batch.column("image_key").to_pylist(), pa.string()),
        grids=[grids.setdefault(size, size) for size in zip(height.tolist(), width.tolist(), strict=True)],
        crcs_n=crcs_n.copy(),
        present_n=column.is_valid().to_numpy(zero_copy_only=False),
        starts_n=starts_n,
        checked_n=np.zeros(len(column), bool),
    )


def _empty() -> ShardIndex:
    none = np.zeros(0, np.int64)
    return ShardIndex(
        keys=pa.array([], pa.string()),
        grids=[],
        crcs_n=none,
        present_n=none.astype(bool),
        starts_n=np.zeros(1, np.int64),
        checked_n=none.astype(bool),
    )
