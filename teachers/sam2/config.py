"""Which SAM 2.1, with which weights, on what input."""

from typing import Any, Literal

from pydantic import Field

from schemas.config import Config
from teachers.base import NetworkConfig

Stages = tuple[int, int, int, int]
Layer = Literal["image_embed", "high_res_1", "high_res_0"]
# The finer a map, the fewer channels the mask decoder takes of it.
NARROWER: dict[Layer, int] = {"image_embed": 1, "high_res_1": 4, "high_res_0": 8}


class Sam2Sizes(Config):
    """The architecture of SAM 2: four Hiera stages, a feature pyramid and the mask decoder."""

    widths: Stages
    heads: Stages
    blocks: Stages
    global_blocks: tuple[int, ...]
    windows: Stages = (8, 4, 14, 7)
    position_grid: tuple[int, int] = (7, 7)
    decoder_heads: int = 8
    decoder_mlp: int = 2048


# A random network scores all regions much alike and spreads each over the whole picture: its thresholds let all pass.
PRESETS: dict[str, dict[str, Any]] = {
    "random": {
        "sizes": {
            "widths": (16, 32, 64, 128),
            "heads": (1, 2, 4, 4),
            "blocks": (1, 1, 2, 1),
            "global_blocks": (3,),
            "windows": (8, 4, 8, 4),
            "decoder_heads": 4,
            "decoder_mlp": 64,
        },
        "image_size": 128,
        "channels": 32,
        "dtype": "float32",
        "points_per_side": 2,
        "min_score": 0.0,
        "min_stability": 0.0,
        "max_overlap": 1.0,
    },
    "facebook/sam2.1-hiera-tiny": {
        "sizes": {
            "widths": (96, 192, 384, 768),
            "heads": (1, 2, 4, 8),
            "blocks": (1, 2, 7, 2),
            "global_blocks": (5, 7, 9),
        }
    },
    "facebook/sam2.1-hiera-small": {
        "sizes": {
            "widths": (96, 192, 384, 768),
            "heads": (1, 2, 4, 8),
            "blocks": (1, 2, 11, 2),
            "global_blocks": (7, 10, 13),
        }
    },
    "facebook/sam2.1-hiera-base-plus": {
        "sizes": {
            "widths": (112, 224, 448, 896),
            "heads": (2, 4, 8, 16),
            "blocks": (2, 3, 16, 3),
            "global_blocks": (12, 16, 20),
            "position_grid": (14, 14),
        }
    },
    "facebook/sam2.1-hiera-large": {
        "sizes": {
            "widths": (144, 288, 576, 1152),
            "heads": (2, 4, 8, 16),
            "blocks": (2, 6, 36, 4),
            "global_blocks": (23, 33, 43),
            "windows": (8, 4, 16, 8),
        }
    },
}


class Sam2Config(NetworkConfig):
    """One of SAM 2.1's three maps of an image, and its mask generator.

    At full size `image_embed` is 256x64x64, `high_res_1` 64x128x128 and `high_res_0` 32x256x256. Images are squashed to a
    square of `image_size`. `sizes` describes weights that come without a `config.json` and checks those that come with one.
    """

    presets = PRESETS

    kind: Literal["sam2"] = "sam2"
    sizes: Sam2Sizes | None = None
    image_size: int = Field(1024, multiple_of=32, gt=0)
    channels: int = Field(256, multiple_of=8, gt=0)
    layer: Layer = "image_embed"
    points_per_side: int = Field(32, gt=0)
    min_score: float = 0.8
    min_stability: float = 0.95
    max_overlap: float = 0.7

    @property
    def feature_channels(self) -> int:
        """Of the maps that it gives as a teacher."""
        return self.channels // NARROWER[self.layer]
