"""Which RADIO, with which weights, on what input."""

from typing import Any, Literal

from pydantic import Field

from schemas.config import Config
from teachers.base import NetworkConfig


class RadioSizes(Config):
    """The architecture of RADIO: a plain vision transformer. How many tokens stand before the patches, and how large the table
    of positions is, the weights say themselves."""

    blocks: int
    heads: int
    mlp: int
    patch: int = 16


PRESETS: dict[str, dict[str, Any]] = {
    "random": {
        "sizes": {"blocks": 2, "heads": 4, "mlp": 128},
        "shortest_edge": 128,
        "channels": 32,
        "dtype": "float32",
    },
    "nvidia/RADIO-B": {
        "sizes": {"blocks": 12, "heads": 12, "mlp": 3072},
        "aligned_corners": True,
        "channels": 768,
    },
    "nvidia/RADIO-L": {
        "sizes": {"blocks": 24, "heads": 16, "mlp": 4096},
        "aligned_corners": True,
        "channels": 1024,
    },
    "nvidia/C-RADIOv4-H": {
        "sizes": {"blocks": 32, "heads": 16, "mlp": 5120},
        "shortest_edge": 512,
        "channels": 1280,
    },
}


class RadioConfig(NetworkConfig):
    """RADIO's spatial features: the patches of its last block, a grid of one sixteenth of its input.

    An image is resized so that its shorter side is `shortest_edge`, then to the nearest multiples of the patch size.
    `aligned_corners` says how the table of positions is resized to an image's grid: the code published with RADIO 2.5 puts
    its corners onto those of the grid, that of C-RADIOv4 and of transformers its cells; other positions, other features.
    """

    presets = PRESETS

    kind: Literal["radio"] = "radio"
    sizes: RadioSizes | None = None
    shortest_edge: int = Field(768, gt=0)
    aligned_corners: bool = False
    channels: int = Field(1024, multiple_of=8, gt=0)

    @property
    def layer(self) -> str:
        return "spatial_features"

    @property
    def feature_channels(self) -> int:
        """Of the maps that it gives as a teacher."""
        return self.channels
