"""FeatureSpec: what a stored teacher feature is: of which teacher and layer, on which grid, in which codec.

A map is resized to its grid when it is extracted, and its row holds what the codec makes of it.
"""

from typing import Annotated

import numpy as np
from pydantic import StringConstraints

from schemas import codecs
from schemas.codecs import Basis
from schemas.config import Config
from schemas.errors import DataError, NonFinite
from schemas.grids import Grid, Size, grid_of

CodecName = Annotated[str, StringConstraints(pattern=codecs.NAMES)]


class FeatureSpec(Config):
    """One column of teacher features. `seed` is that of the places which `points<n>` draws."""

    teacher: str
    layer: str
    channels: int
    grid: Grid
    codec: CodecName = "bf16"
    seed: int = 0

    @property
    def components(self) -> int | None:
        """How many principal components are stored; None where the channels themselves are."""
        return codecs.codec_of(self.codec).components

    @property
    def is_squeezed(self) -> bool:
        return codecs.is_squeezed(self.codec)

    def grid_of(self, width: int, height: int) -> Size | None:
        """(h, w) of the map of a picture of this size; None for the teacher's own."""
        return grid_of(self.grid, width, height)

    def layout(self, height: int, width: int) -> codecs.Layout:
        """The arrays of a row whose map is of this size."""
        return codecs.codec_of(self.codec).layout(self.channels, height, width)

    def encode(self, map_Chw: np.ndarray, key: str, basis: Basis | None = None) -> bytes:
        """The row of the picture `key`. Not finite raises, be it as it comes or as it is stored; `basis` has the components
        that the codec asks for."""
        if len(map_Chw) != self.channels:
            raise ValueError(f"{self.teacher}: expected {self.channels} channels, got a map of shape {map_Chw.shape}")
        self._refuse_unless(np.isfinite(map_Chw).all())
        kept_Khw = self._basis(basis).reduce(map_Chw) if self.components else map_Chw
        self._refuse_unless(kept_Khw is map_Chw or np.isfinite(kept_Khw).all())
        codec, random = codecs.codec_of(self.codec), np.random.default_rng([self.seed, int(key[-16:], 16)])
        arrays = codec.encode(kept_Khw, random)
        self._refuse_unless(codec.is_finite(arrays), f" as {self.codec}")
        stored = codecs.pack(arrays, self.layout(*map_Chw.shape[1:]))
        return codecs.squeeze(stored) if self.is_squeezed else stored

    def arrays(self, stored: bytes | memoryview, height: int, width: int) -> dict[str, np.ndarray]:
        """The arrays of a row as they are stored; views, but for what has to be decompressed."""
        layout = self.layout(height, width)
        try:
            if self.is_squeezed:
                stored = codecs.unsqueeze(memoryview(stored), codecs.layout_bytes(layout))
            return codecs.unpack(stored, layout)
        except ValueError as error:
            raise DataError(f"a feature of {self.teacher} cannot be read: {error}") from None

    def decode(self, stored: bytes | memoryview, height: int, width: int, basis: Basis | None = None) -> np.ndarray:
        """The float32 map (C, h, w), or (C, n) for points. Without their basis, components stay components: (K, h, w)."""
        kept_Khw = codecs.codec_of(self.codec).decode(self.arrays(stored, height, width))
        return self._basis(basis).expand(kept_Khw) if self.components and basis else kept_Khw

    def _refuse_unless(self, is_finite: bool | np.bool_, how: str = "") -> None:
        if not is_finite:
            raise NonFinite(f"{self.teacher} made a feature that is not finite{how}")

    def _basis(self, basis: Basis | None) -> Basis:
        if basis is None or basis.axes_CK.shape[1] < (self.components or 0):
            raise ValueError(f"{self.teacher}: {self.codec} needs a basis of {self.components} components")
        return basis.first(self.components or 0)
