"""How fast a file system takes and gives large files for hours on end, and not in its first seconds.

Many a disk takes the first gigabytes into a fast cache and then falls to a fraction of that. So pieces are written, each
waited for until it lies on the disk, until the rate has fallen for good and held, or so many bytes have gone that one may
write no more. The rates fall apart into regimes; the last of them is what a long run is planned with.
"""

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import BinaryIO, Protocol

import numpy as np

from schemas.errors import ConfigError
from schemas.storage import Folder
from stages.forecast import Range, total

Clock = Callable[[], float]
FALL = 2.0  # a rate this many times lower, for `LASTING` pieces, is another regime
LASTING = 8
PIECES = 64
MOST_BYTES = 4 << 30
LEAST_BYTES = 16 << 20
OBJECTS, OBJECT_BYTES = 4, 64 << 20


@dataclass(frozen=True)
class Regime:
    """So many bytes went at about one rate."""

    bytes: int
    seconds_a_byte: Range


@dataclass(frozen=True)
class Pace:
    """The regimes in the order in which they came; there is at least one."""

    regimes: tuple[Regime, ...]

    @property
    def sustained(self) -> Regime:
        return self.regimes[-1]

    def seconds(self, count: Range) -> Range:
        """For so many bytes, at the sustained rate. At best, what came before it is there once more, to be used up first."""
        long = count.times(self.sustained.seconds_a_byte)
        left, parts = count.low, []
        for regime in self.regimes[:-1]:
            taken = min(left, regime.bytes)
            left -= taken
            parts.append(regime.seconds_a_byte.times(taken))
        best = total([*parts, self.sustained.seconds_a_byte.times(left)])
        return Range(min(best.low, long.low), long.likely, long.high)


@dataclass(frozen=True)
class Storage:
    write: Pace
    read: Pace


class File(Protocol):
    def write(self, data: bytes, /) -> object: ...


def storage_of(workspace: Folder, most: int, clock: Clock = time.perf_counter) -> Storage:
    """What the file system or object store of `workspace` can do, on at most `most` bytes. Nothing is left there: a local
    file has no name at any time, and objects are taken away again."""
    return _disk(workspace, most, clock) if workspace.is_local else _objects(workspace, most, clock)


def written(file: File, piece: bytes, most: int, clock: Clock) -> list[float]:
    """Seconds for each piece: as many as `most` bytes make, or fewer if the rate has fallen and held since."""
    seconds: list[float] = []
    while (len(seconds) + 1) * len(piece) <= most or not seconds:
        start = clock()
        file.write(piece)
        seconds.append(clock() - start)
        if len(seconds) - _last_fall(seconds) >= 2 * LASTING and _last_fall(seconds):
            break
    return seconds


def pace(seconds: Sequence[float], piece: int) -> Pace:
    """The regimes that pieces of `piece` bytes fall into."""
    cuts = [0, *_falls(seconds), len(seconds)]
    parts = [seconds[start:end] for start, end in pairwise(cuts)]
    return Pace(tuple(Regime(len(part) * piece, Range.mean_of([each / piece for each in part])) for part in parts))


def _last_fall(seconds: Sequence[float]) -> int:
    return max(_falls(seconds), default=0)


def _falls(seconds: Sequence[float], offset: int = 0) -> list[int]:
    """Where the rate falls for good: the best cut into two levels, if they lie far enough apart, and so on on both sides."""
    at = _best_cut(np.log(np.maximum(seconds, 1e-12)))
    if at is None or median(seconds[at:]) < FALL * median(seconds[:at]):
        return []
    return [*_falls(seconds[:at], offset), offset + at, *_falls(seconds[at:], offset + at)]


def _best_cut(values: np.ndarray) -> int | None:
    """The cut that leaves the least squares around the means of both sides; None where there are too few for both."""
    cuts = np.arange(2, len(values) - LASTING + 1)
    if not len(cuts):
        return None
    sums, count = np.cumsum(values), len(values)
    left, right = sums[cuts - 1], sums[-1] - sums[cuts - 1]
    return int(cuts[np.argmax(left**2 / cuts + right**2 / (count - cuts))])


# -- a local disk ----------------------------------------------------------------------------------------------------


class _Synced:
    """A file of which each write is waited for."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)
        os.fsync(self._file.fileno())


def _disk(workspace: Folder, most: int, clock: Clock) -> Storage:
    place = _nearest(Path(workspace.path()))
    free = os.statvfs(place)
    allowed = min(most, free.f_bavail * free.f_frsize // 10)
    if allowed < LEAST_BYTES:
        what = f"too little room to measure: {allowed} bytes are a tenth of what is free, or all that was allowed"
        raise ConfigError(what, str(place), f"Make room, or allow {LEAST_BYTES} bytes.")
    piece = np.random.default_rng(0).bytes(allowed // PIECES)
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            wrote = written(_Synced(file), piece, allowed, clock)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            read = list(_read(file.fileno(), len(piece), len(wrote), clock))
    except OSError as error:
        raise ConfigError(f"one cannot write there: {error}", str(place), "Choose another workspace.") from None
    return Storage(pace(wrote, len(piece)), pace(read, len(piece)))


def _read(handle: int, piece: int, count: int, clock: Clock) -> Iterator[float]:
    """Seconds for each piece, in an order of their own: as training reads rows."""
    for number in np.random.default_rng(0).permutation(count):
        start = clock()
        os.pread(handle, piece, int(number) * piece)
        yield clock() - start


def _nearest(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


# -- an object store -------------------------------------------------------------------------------------------------


def _objects(workspace: Folder, most: int, clock: Clock) -> Storage:
    """A few objects as large as shards: each is one request, and no cache hides the network."""
    data = np.random.default_rng(0).bytes(max(min(most // OBJECTS, OBJECT_BYTES), 1))
    names = [f".probe-{uuid.uuid4().hex}" for _ in range(OBJECTS)]
    try:
        wrote = [_timed(lambda name=name: workspace.write(name, data), clock) for name in names]
        read = [_timed(lambda name=name: workspace.read(name), clock) for name in names]
    finally:
        for name in names:
            workspace.remove(name)
    return Storage(pace(wrote, len(data)), pace(read, len(data)))


def _timed(work: Callable[[], object], clock: Clock) -> float:
    start = clock()
    work()
    return clock() - start
