"""Teacher configs: which network, with which weights, on what input, and the grid its features are kept on.

`weights` names the network and picks the defaults of the other fields (see `PRESETS`): "random" is a micro network with
seeded weights for trials and tests, the other names are those of the published checkpoints. The name is identity, where
the files lie (`folder`) is not; a digest of the files themselves is part of the identity of all that they make.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from schemas.config import Config, execution
from schemas.features import FeatureSpec

Dtype = Literal["float32", "bfloat16", "float16"]
Stages = tuple[int, int, int, int]


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


class Mask2FormerSizes(Config):
    """The architecture of Mask2Former: a Swin backbone, the pixel decoder and the query decoder."""

    width: int
    blocks: Stages
    heads: Stages
    window: int
    queries: int
    labels: int = 133
    pixel_layers: int = 6
    pixel_mlp: int = 1024
    query_layers: int = 9
    query_mlp: int = 2048
    decoder_heads: int = 8


class Sam2Config(Config):
    """SAM 2.1's image embedding (the coarsest level, with the no-memory embedding) and its mask generator.

    Images are squashed to a square of `image_size`. `grid` is (height, width). `sizes` describes weights that come without
    a `config.json` and checks those that come with one.
    """

    kind: Literal["sam2"] = "sam2"
    weights: str = "random"
    folder: str | None = execution(None)
    seed: int = 0
    sizes: Sam2Sizes | None = None
    image_size: int = Field(1024, multiple_of=32, gt=0)
    channels: int = Field(256, multiple_of=8, gt=0)
    grid: tuple[int, int] = (64, 64)
    dtype: Dtype = "bfloat16"
    points_per_side: int = Field(32, gt=0)
    min_score: float = 0.8
    min_stability: float = 0.95
    max_overlap: float = 0.7

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        return _with_preset(data, "sam2")

    @property
    def is_random(self) -> bool:
        return self.weights == "random"

    def spec(self, name: str) -> FeatureSpec:
        """The column that the teacher called `name` fills."""
        return _spec(name, "image_embed", self.channels, self.grid)


class Mask2FormerConfig(Config):
    """Mask2Former's mask features (pixel decoder, stride 4 of its input) and its panoptic segmentation.

    An image is resized so that its shorter side is `shortest_edge`, or less where its longer side would exceed
    `longest_edge`; then both are rounded up to a multiple of 32. Labels below `things` are countable things.
    """

    kind: Literal["mask2former"] = "mask2former"
    weights: str = "random"
    folder: str | None = execution(None)
    seed: int = 0
    sizes: Mask2FormerSizes | None = None
    shortest_edge: int = Field(800, gt=0)
    longest_edge: int = Field(1333, gt=0)
    channels: int = Field(256, multiple_of=32, gt=0)
    grid: tuple[int, int] = (128, 128)
    dtype: Dtype = "bfloat16"
    things: int = 80
    min_score: float = 0.8
    min_overlap: float = 0.8

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        return _with_preset(data, "mask2former")

    @property
    def is_random(self) -> bool:
        return self.weights == "random"

    def spec(self, name: str) -> FeatureSpec:
        """The column that the teacher called `name` fills."""
        return _spec(name, "mask_features", self.channels, self.grid)


TeacherConfig = Annotated[Sam2Config | Mask2FormerConfig, Field(discriminator="kind")]


def _spec(name: str, layer: str, channels: int, grid: tuple[int, int]) -> FeatureSpec:
    height, width = grid
    return FeatureSpec(teacher=name, layer=layer, channels=channels, height=height, width=width, codec="bf16")


def _with_preset(data: Any, kind: str) -> Any:
    if not isinstance(data, dict):
        return data
    return PRESETS[kind].get(data.get("weights", "random"), {}) | data


# A random network scores all regions much alike and spreads each over the whole picture: its thresholds let all pass.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "sam2": {
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
            "grid": (8, 8),
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
    },
    "mask2former": {
        "random": {
            "sizes": {
                "width": 16,
                "blocks": (1, 1, 1, 1),
                "heads": (1, 2, 4, 8),
                "window": 4,
                "queries": 10,
                "labels": 8,
                "pixel_layers": 1,
                "pixel_mlp": 64,
                "query_layers": 2,
                "query_mlp": 64,
                "decoder_heads": 4,
            },
            "shortest_edge": 128,
            "longest_edge": 224,
            "channels": 32,
            "grid": (32, 32),
            "dtype": "float32",
            "things": 5,
            "min_score": 0.0,
            "min_overlap": 0.0,
        },
        "facebook/mask2former-swin-tiny-coco-panoptic": {
            "sizes": {
                "width": 96,
                "blocks": (2, 2, 6, 2),
                "heads": (3, 6, 12, 24),
                "window": 7,
                "queries": 100,
            }
        },
        "facebook/mask2former-swin-large-coco-panoptic": {
            "sizes": {
                "width": 192,
                "blocks": (2, 2, 18, 2),
                "heads": (6, 12, 24, 48),
                "window": 12,
                "queries": 200,
            }
        },
    },
}
