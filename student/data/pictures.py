"""The pictures of a store, read one by one and at random."""

from collections import OrderedDict
from threading import Lock
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from schemas.artifact import Artifact
from schemas.pictures import decode, sound_bytes

KEPT_FOOTERS = 128  # of files of pictures, each a megabyte or two in memory


class PictureReader:
    """Decoded pictures, the latest `cache_bytes` of them kept. Threads may share one."""

    def __init__(self, images: Artifact, cache_bytes: int):
        self._images, self._capacity, self._used = images, cache_bytes, 0
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._lock = Lock()

    def read(self, shard: int, row: int) -> np.ndarray:
        """HWC uint8 RGB, upright; not to be written to. Raises `BrokenArtifact` for one that the store has damaged."""
        place = shard, row
        with self._lock:
            if place in self._cache:
                self._cache.move_to_end(place)
                return self._cache[place]
        picture = decode(sound_bytes(self._row(shard, row)))
        with self._lock:
            self._keep(place, picture)
        return picture

    def _row(self, shard: int, row: int) -> dict[str, Any]:
        """Each picture is a row group of its own, so one is read without its neighbours. No file stays open: a store may have
        more shards than a process may open. Of a remote file no more is asked for than is read, and that at once."""
        folder = self._images.folder
        with folder.fs.open(folder.path(self._images.shard_name(shard)), "rb", cache_type="none") as file:
            parquet = pq.ParquetFile(file, metadata=self._footers.get(shard), pre_buffer=not folder.is_local)
            with self._lock:
                self._footers[shard] = parquet.metadata
                self._footers.move_to_end(shard)
                while len(self._footers) > KEPT_FOOTERS:
                    self._footers.popitem(last=False)
            return parquet.read_row_group(row, columns=["image_key", "bytes", "sha256"]).to_pylist()[0]

    def _keep(self, place: tuple[int, int], picture: np.ndarray) -> None:
        if place in self._cache or picture.nbytes > self._capacity:
            return
        self._cache[place] = picture
        self._used += picture.nbytes
        while self._used > self._capacity:
            self._used -= self._cache.popitem(last=False)[1].nbytes
