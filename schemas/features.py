"""FeatureSpec: what a stored teacher feature is, and the codecs between arrays and bytes.

The map of one image has the shape (channels, height, width); it is resized to this grid when it is extracted, and stored
as raw little-endian values in C order. numpy has no bfloat16, so bf16 is carried as the upper 16 bits of a float32.
"""

from typing import Literal

import numpy as np

from schemas.config import Config
from schemas.errors import NonFinite


class FeatureSpec(Config):
    """One column of teacher features: which teacher and layer, the stored grid and the codec."""

    teacher: str
    layer: str
    channels: int
    height: int
    width: int
    codec: Literal["bf16"] = "bf16"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    @property
    def row_bytes(self) -> int:
        return 2 * self.channels * self.height * self.width

    def encode(self, feature: np.ndarray) -> bytes:
        """The stored bytes of a float32 map (channels, height, width), rounded to nearest even; not finite raises."""
        if feature.shape != self.shape:
            raise ValueError(f"{self.teacher}: expected features of shape {self.shape}, got {feature.shape}")
        if not np.isfinite(feature).all():
            raise NonFinite(f"{self.teacher} made a feature that is not finite")
        return bf16_bits(feature).tobytes()

    def decode(self, stored: bytes | memoryview | np.ndarray) -> np.ndarray:
        """The float32 map (channels, height, width) that `encode` rounded."""
        bits = np.frombuffer(stored, dtype="<u2").reshape(self.shape)
        return (bits.astype(np.uint32) << 16).view(np.float32)


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """The bfloat16 bit patterns (uint16) of finite float32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
