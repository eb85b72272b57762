"""A teacher's stored maps: read as they lie in their files, and turned back into numbers on the device that trains.

Shapes: C teacher channels, K of them (or of their principal components) stored, y x x the stored grid, n cells or places of
it, G samples of one size, h x w the student's grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schemas import codecs
from schemas.artifact import Artifact
from schemas.cache import Cache
from schemas.codecs import Basis
from schemas.errors import DataError
from schemas.feature_rows import FeatureRows
from schemas.features import FeatureSpec


class Stored(NamedTuple):
    """One picture's map as it is stored: `values` (K, y, x), or (K, n) at `places_n` of the flattened grid; bfloat16, or int8
    to be multiplied by `scale_K`."""

    grid: tuple[int, int]
    values: Tensor
    scale_K: Tensor | None = None
    places_n: Tensor | None = None

    @classmethod
    def of(cls, spec: FeatureSpec, row: np.ndarray | bytes, grid: tuple[int, int]) -> "Stored":
        """In the memory of an array, which must be writable, as a tensor's must be; of bytes in memory of its own."""
        size, is_squeezed, parts = _layout(spec.codec, spec.channels, grid)
        if is_squeezed:
            row = _unsqueezed(spec, row, size)
        if len(row) != size:
            raise DataError(f"a row of {len(row)} bytes where {spec.codec} takes {size}", f"features of {spec.teacher}")
        memory = bytearray(row) if isinstance(row, bytes) else row
        return cls(grid, *[part and part.of(memory) for part in parts])

    def to(self, device: torch.device | str) -> "Stored":
        return Stored(self.grid, *(part if part is None else part.to(device, non_blocking=True) for part in self[1:]))

    @property
    def form(self) -> tuple[object, ...]:
        """Alike for those that can be decoded together."""
        return self.grid, self.values.shape, self.values.dtype, self.places_n is None


_BFLOAT16 = np.dtype("<u2")  # its bits, for numpy has none
_ARRAYS = ("values", "scale", "places")  # a codec's, in the order of the fields of `Stored`


class _Part(NamedTuple):
    """One array of a row, and where in the row it lies."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    def of(self, memory: np.ndarray | bytearray) -> Tensor:
        """In few calls, for every row that training reads comes through here."""
        read = torch.from_numpy(np.ndarray(self.shape, self.dtype, memory, self.offset))
        if self.dtype == _BFLOAT16:
            return read.view(torch.bfloat16)
        return read.long() if read.dtype is torch.uint32 else read


@lru_cache(maxsize=1024)
def _layout(codec: str, channels: int, grid: tuple[int, int]) -> tuple[int, bool, list[_Part | None]]:
    """The bytes of a row, whether they are squeezed, and which of `_ARRAYS` it has, up to the last. Kept: each asks."""
    parts, at = {}, 0
    for name, (dtype, shape) in codecs.codec_of(codec).layout(channels, *grid).items():
        parts[name] = _Part(np.dtype(dtype), shape, at)
        at = parts[name].end
    last = max(map(_ARRAYS.index, parts))
    return at, codecs.is_squeezed(codec), [parts.get(name) for name in _ARRAYS[: last + 1]]


def _unsqueezed(spec: FeatureSpec, row: np.ndarray | bytes, size: int) -> bytes:
    try:
        return codecs.unsqueeze(memoryview(row), size)
    except ValueError as error:
        raise DataError(str(error), f"features of {spec.teacher}") from None


def decoded(stored: Sequence[Stored]) -> Tensor:
    """(G, K, y, x) or (G, K, n) float32, of maps of one form."""
    values = torch.stack([each.values for each in stored]).float()
    scales = [each.scale_K for each in stored if each.scale_K is not None]
    return values * torch.stack(scales)[..., None, None] if scales else values


def resized(map_GKyx: Tensor, grid: tuple[int, int]) -> Tensor:
    """(G, K, h, w): the teacher's map brought to the student's grid as the reference brings it."""
    if map_GKyx.shape[2:] == grid:
        return map_GKyx
    return F.interpolate(map_GKyx, size=grid, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Column:
    """What training must know of a teacher's column beside its rows; `basis` where principal components are stored."""

    spec: FeatureSpec
    basis: Basis | None = None


class Target(nn.Module):
    """Stored maps as what a student's cells are held against, in the teacher's channels or in their principal components.

    The mean squared distance over components, times `share`, is the distance over all channels, but for the part that lies
    beside the components: of a student that stays among them, a constant.
    """

    def __init__(self, column: Column, space: Literal["teacher", "components"] = "teacher"):
        super().__init__()
        spec, stored = column.spec, column.spec.components
        self.teacher, self.channels, self.share, self.basis = spec.teacher, spec.channels, 1.0, False
        if stored and space == "components":
            self.channels, self.share = stored, stored / spec.channels
        elif stored:
            self.basis = True
            basis = _basis_of(column).first(stored)
            self.register_buffer("mean_C", torch.from_numpy(basis.mean_C), persistent=False)
            self.register_buffer("axes_CK", torch.from_numpy(basis.axes_CK), persistent=False)

    def forward(self, stored: Sequence[Stored], grid: tuple[int, int]) -> Tensor:
        """(G, n, C) float32: the cells of maps of one form on the student's grid, row by row, or the places that are stored."""
        maps = decoded(stored)
        cells_GnK = (maps if stored[0].places_n is not None else resized(maps, grid).flatten(2)).transpose(1, 2)
        return cells_GnK @ self.axes_CK.T + self.mean_C if self.basis else cells_GnK

    def places(self, student_GhwK: Tensor, stored: Sequence[Stored]) -> Tensor:
        """(G, n, K): the student's cells that `forward` gives targets for."""
        cells_GnK, grid = student_GhwK.flatten(1, 2), tuple(student_GhwK.shape[1:3])
        if stored[0].places_n is None:
            return cells_GnK
        if stored[0].grid != grid:
            what = f"places of a grid of {_by(stored[0].grid)}, the student's is {_by(grid)}"
            raise DataError(what, f"features of {self.teacher}", "Make them on grid = 'student'.")
        places_Gn1 = torch.stack([each.places_n for each in stored if each.places_n is not None])[..., None]
        return cells_GnK.gather(1, places_Gn1.expand(-1, -1, cells_GnK.shape[2]))


def _basis_of(column: Column) -> Basis:
    if column.basis is None:
        raise DataError(f"{column.spec.codec} without its basis", f"features of {column.spec.teacher}", "Hand it over too.")
    return column.basis


def _by(grid: Sequence[int]) -> str:
    return " x ".join(map(str, grid))


class FeatureReader:
    """One teacher's stored maps, read one by one from where they lie; from afar through `cache`."""

    def __init__(self, artifact: Artifact, cache: Cache | None = None):
        self._rows = FeatureRows(artifact, cache)
        self.spec = self._rows.spec

    def keys(self, shard: int) -> pa.StringArray:
        """Of the pictures, in the order of the rows."""
        return self._rows.shards[shard].keys

    def is_present(self, shard: int, row: int) -> bool:
        return bool(self._rows.shards[shard].present_n[row])

    def read(self, shard: int, row: int) -> Stored:
        """The map of one picture. Raises BrokenArtifact where there is none, or its bytes are not those that were written."""
        return Stored.of(self.spec, self._rows.read(shard, row), self._rows.shards[shard].grids[row])
