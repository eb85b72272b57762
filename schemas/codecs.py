"""Codecs: between a float32 map (C, h, w) and the bytes of a row.

    bf16          as it is, in half the bytes: the precision in which the authors take the loss
    bf16-zstd     the same, its upper and lower bytes apart and compressed: smaller and slower, for cold storage
    int8          a scale for each channel of each picture
    pca<k>-int8   k principal components of the channels (a `Basis` fitted on a sample of the pool), then as int8
    points<n>     bf16 at n places of the grid, drawn from (seed, picture): the mean over them is an unbiased estimate of the
                  mean over the grid

A row is its arrays one after the other, little-endian: `scale` (float32) or `places` (uint32) first, then `values`.
numpy has no bfloat16, so bf16 is carried as the upper 16 bits of a float32.

Shapes: C channels, K of them stored, h x w the grid, n places.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

Arrays = Mapping[str, np.ndarray]
Layout = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype and shape, in the order in which they are stored


@dataclass(frozen=True)
class Basis:
    """Principal axes of a teacher's channels, the strongest first."""

    mean_C: np.ndarray
    axes_CK: np.ndarray

    def reduce(self, map_Chw: np.ndarray) -> np.ndarray:
        """(K, h, w): the coordinates of each cell along the axes."""
        flat_Cn = map_Chw.reshape(len(map_Chw), -1) - self.mean_C[:, None]
        return (self.axes_CK.T @ flat_Cn).reshape(-1, *map_Chw.shape[1:])

    def expand(self, map_Khw: np.ndarray) -> np.ndarray:
        """(C, h, w): the cells that have these coordinates."""
        flat_Cn = self.axes_CK @ map_Khw.reshape(len(map_Khw), -1) + self.mean_C[:, None]
        return flat_Cn.reshape(-1, *map_Khw.shape[1:])

    def first(self, k: int) -> "Basis":
        return Basis(self.mean_C, np.ascontiguousarray(self.axes_CK[:, :k]))


class Codec(Protocol):
    """`encode` and `decode` are inverse as far as the codec keeps what it is given."""

    @property
    def components(self) -> int | None:
        """How many principal components are stored; None where the channels themselves are."""
        ...

    def layout(self, channels: int, height: int, width: int) -> Layout:
        """The arrays of a row."""
        ...

    def encode(self, map_Khw: np.ndarray, random: np.random.Generator) -> Arrays: ...

    def is_finite(self, arrays: Arrays) -> bool:
        """Whether all is that `decode` gives of what `encode` has made: a number that is finite may be rounded up to one that
        is not."""
        ...

    def decode(self, arrays: Arrays) -> np.ndarray:
        """(K, h, w) float32, or (K, n) where only places are stored."""
        ...


@dataclass(frozen=True)
class Bf16:
    components: None = None

    def layout(self, channels: int, height: int, width: int) -> Layout:
        return {"values": ("<u2", (channels, height, width))}

    def encode(self, map_Khw: np.ndarray, random: np.random.Generator) -> Arrays:
        return {"values": bf16_bits(map_Khw)}

    def is_finite(self, arrays: Arrays) -> bool:
        return are_finite_bits(arrays["values"])

    def decode(self, arrays: Arrays) -> np.ndarray:
        return from_bf16_bits(arrays["values"])


@dataclass(frozen=True)
class Int8:
    components: int | None = None

    def layout(self, channels: int, height: int, width: int) -> Layout:
        stored = self.components or channels
        return {"scale": ("<f4", (stored,)), "values": ("|i1", (stored, height, width))}

    def encode(self, map_Khw: np.ndarray, random: np.random.Generator) -> Arrays:
        largest_K = np.abs(map_Khw).max(axis=(1, 2))
        scale_K = np.where(largest_K > 0, largest_K / 127, 1).astype("<f4")
        return {"scale": scale_K, "values": np.rint(map_Khw / scale_K[:, None, None]).clip(-127, 127).astype("i1")}

    def is_finite(self, arrays: Arrays) -> bool:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(arrays["scale"] * np.float32(127)).all())  # the largest of each channel

    def decode(self, arrays: Arrays) -> np.ndarray:
        return arrays["values"] * arrays["scale"][:, None, None]


@dataclass(frozen=True)
class Points:
    count: int
    components: None = None

    def layout(self, channels: int, height: int, width: int) -> Layout:
        n = min(self.count, height * width)
        return {"places": ("<u4", (n,)), "values": ("<u2", (channels, n))}

    def encode(self, map_Khw: np.ndarray, random: np.random.Generator) -> Arrays:
        cells = map_Khw.shape[1] * map_Khw.shape[2]
        places_n = np.sort(random.choice(cells, min(self.count, cells), replace=False)).astype("<u4")
        return {"places": places_n, "values": bf16_bits(map_Khw.reshape(len(map_Khw), -1)[:, places_n])}

    def is_finite(self, arrays: Arrays) -> bool:
        return are_finite_bits(arrays["values"])

    def decode(self, arrays: Arrays) -> np.ndarray:
        return from_bf16_bits(arrays["values"])


NAMES = r"^(bf16|bf16-zstd|int8|pca[1-9]\d*-int8|points[1-9]\d*)$"


def codec_of(name: str) -> Codec:
    """The codec that a name of the form `NAMES` stands for."""
    number = int("".join(re.findall(r"(?<=pca|nts)\d+", name)) or 0)
    if name.startswith("points"):
        return Points(number)
    return Bf16() if name.startswith("bf16") else Int8(number or None)


def is_squeezed(name: str) -> bool:
    return name.endswith("-zstd")


def pack(arrays: Arrays, layout: Layout) -> bytes:
    """The arrays in their order."""
    return b"".join(np.ascontiguousarray(arrays[name], dtype=dtype).tobytes() for name, (dtype, _) in layout.items())


def unpack(stored: bytes | memoryview, layout: Layout) -> dict[str, np.ndarray]:
    """The arrays, views of the bytes; `ValueError` where there are not as many bytes as they take."""
    data, at, arrays = memoryview(stored).cast("B"), 0, {}
    for name, (dtype, shape) in layout.items():
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        arrays[name] = np.frombuffer(data[at : at + size], dtype).reshape(shape)
        at += size
    if at != len(data):
        raise ValueError(f"{len(data)} bytes where the codec takes {at}")
    return arrays


def layout_bytes(layout: Layout) -> int:
    return sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in layout.values())


def squeeze(stored: bytes) -> bytes:
    """16-bit values with their upper and their lower bytes apart, compressed: sign and exponent repeat, the rest does not."""
    planes_2n = np.frombuffer(stored, np.uint8).reshape(-1, 2).T[::-1]
    return pa.compress(np.ascontiguousarray(planes_2n).data, codec="zstd", asbytes=True)


def unsqueeze(squeezed: bytes | memoryview, size: int) -> bytes:
    """What `squeeze` made smaller; `size` is its size in bytes. `ValueError` for anything else."""
    try:
        planes = pa.decompress(squeezed, size, codec="zstd", asbytes=True)
    except OSError as error:
        raise ValueError(f"not a compressed map: {error}") from None
    return np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(2, -1)[::-1].T).tobytes()


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """The bfloat16 bit patterns (uint16) of finite float32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = bits >> 16  # one array, changed in place: the memory costs more than the sums
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype("<u2")


def are_finite_bits(bits: np.ndarray) -> bool:
    """Whether bfloat16 bit patterns are of finite values: an exponent of ones is infinity, or no number."""
    return bool(((bits & 0x7F80) != 0x7F80).all())


def from_bf16_bits(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
