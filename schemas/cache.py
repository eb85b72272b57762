"""Cache: what was fetched from afar, kept in a local folder of bounded size.

A file is there whole or not at all, and whoever reads it checks what it holds: the cache itself promises nothing. Any number
of processes may share a folder, and any may be killed. Room is taken under a lock, by a file of the full size beside the
place, before a byte is written; so the files never come to more than the bound, and what a killed process left is counted
until it is old enough to be swept away.
"""

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from schemas.errors import DataError
from schemas.storage import ABANDONED_AFTER_SECONDS

LOCK = "used"  # it holds how many bytes are taken, as 20 digits; anything else means that nobody knows
KEPT = 0.9  # of the bound, when room is made: to look at every file is dear, and this way it is rare


@dataclass(frozen=True)
class Cache:
    """`most_bytes` in `folder`, the least recently read go first."""

    folder: Path
    most_bytes: int

    def read(self, key: str, into: np.ndarray) -> bool:
        """Fill `into` with what was written under `key`; False where that is not there, or not as long."""
        try:
            handle = os.open(self._path(key), os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            os.utime(handle)
            return os.fstat(handle).st_size == len(into) == os.preadv(handle, [into.data], 0)
        finally:
            os.close(handle)

    def write(self, key: str, data: bytes) -> None:
        """Keep `data`, unless it is larger than all the cache."""
        if len(data) > self.most_bytes:
            return
        try:
            place = self._path(key)
            beside = self._with_room(place, len(data))
            if beside is None:
                return
            try:
                with beside.open("r+b") as file:
                    file.write(data)
                with self._locked():  # whoever counts must not miss a file for its change of name
                    os.replace(beside, place)
            finally:
                beside.unlink(missing_ok=True)
        except FileNotFoundError:
            return  # somebody whose clock is ahead has swept it away
        except OSError as error:
            remedy = "Make room there, or lower train.feature_cache_bytes."
            raise DataError(f"the cache cannot be written: {error}", str(self.folder), remedy) from None

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name[2:]

    def _with_room(self, place: Path, size: int) -> Path | None:
        """An empty file of this size beside `place`; None where others are writing so much that there is no room."""
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.parent / f".{place.name}.{uuid.uuid4().hex}.tmp"
        with self._locked() as handle:
            told = os.pread(handle, 21, 0)
            used = int(told) if len(told) == 20 and told.isdigit() else self.most_bytes
            if used + size > self.most_bytes:
                used = self._shrunk_to(min(self.most_bytes - size, int(KEPT * self.most_bytes)))
            if used + size > self.most_bytes:
                return None
            os.pwrite(handle, b"%020d" % (used + size), 0)  # first: who dies in between has taken too much, not too little
            with beside.open("wb") as file:
                file.truncate(size)
        return beside

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file that says how much is taken, while nobody else may take more. Closing it lets go, and so does dying."""
        handle = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)

    def _shrunk_to(self, most: int) -> int:
        """Remove the files that were not read for longest until the rest come to `most` bytes; returns what is left. Files
        that are being written stay."""
        found = sorted(self._files())
        used = sum(size for _, size, _ in found)
        old = time.time() - ABANDONED_AFTER_SECONDS
        for touched, size, path in found:
            is_unfinished = path.endswith(".tmp")
            if touched < old if is_unfinished else used > most:
                Path(path).unlink(missing_ok=True)
                used -= size
        return used

    def _files(self) -> Iterator[tuple[float, int, str]]:
        """(when it was last read, its bytes, its path) of every file."""
        for part in [entry.path for entry in os.scandir(self.folder) if entry.is_dir()]:
            with os.scandir(part) as entries:
                for entry in entries:
                    try:
                        found = entry.stat()
                    except FileNotFoundError:  # it was renamed or dropped meanwhile
                        continue
                    yield found.st_mtime, found.st_size, entry.path
