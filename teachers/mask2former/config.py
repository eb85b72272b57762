"""Which Mask2Former, with which weights, on what input.

The names of weights are those of the Hugging Face hub; the ResNet-50 of the authors is not there, and goes by its place in
their model zoo. `folder` is a folder as the hub has it, or the `.pkl` or `.pth` file of the same network as its authors
published it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from schemas.config import Config
from teachers.base import TAUGHT, NetworkConfig

Stages = tuple[int, int, int, int]


class Swin(Config):
    """A Swin backbone: channels of its first stage, blocks and heads of each, side of its attention windows."""

    kind: Literal["swin"] = "swin"
    width: int
    blocks: Stages
    heads: Stages
    window: int


class ResNet(Config):
    """A ResNet of bottlenecks, strided in their 3x3 convolutions: channels of its stem, blocks of each stage."""

    kind: Literal["resnet"] = "resnet"
    width: int = 64
    blocks: Stages


class Mask2FormerSizes(Config):
    """The architecture of Mask2Former: a backbone, the pixel decoder and the query decoder."""

    backbone: Annotated[Swin | ResNet, Field(discriminator="kind")]
    queries: int = 100
    labels: int = 133
    pixel_layers: int = 6
    pixel_mlp: int = 1024
    query_layers: int = 9
    query_mlp: int = 2048
    decoder_heads: int = 8


# A random network scores all regions much alike and spreads each over the whole picture: its thresholds let all pass.
RANDOM: dict[str, Any] = {
    "sizes": {
        "backbone": {"kind": "swin", "width": 16, "blocks": (1, 1, 1, 1), "heads": (1, 2, 4, 8), "window": 4},
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
    "dtype": "float32",
    "things": 5,
    "min_score": 0.0,
    "min_overlap": 0.0,
}

# A micro network that learns the quickstart's scenes: eight kinds of shapes, five of grounds, seven regions at most. From
# nothing, convolutions learn faster than a Swin. It knows sooner where a region is than of which kind, so no score is too low.
LEARNER: dict[str, Any] = RANDOM | {
    "sizes": {
        "backbone": {"kind": "resnet", "width": 16, "blocks": (1, 1, 1, 1)},
        "queries": 12,
        "labels": 13,
        "pixel_layers": 1,
        "pixel_mlp": 64,
        "query_layers": 3,
        "query_mlp": 128,
        "decoder_heads": 4,
    },
    "channels": 64,
    "things": 8,
}

TINY = {"kind": "swin", "width": 96, "blocks": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "window": 7}
SMALL = TINY | {"blocks": (2, 2, 18, 2)}
BASE = {"kind": "swin", "width": 128, "blocks": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "window": 12}
LARGE = {"kind": "swin", "width": 192, "blocks": (2, 2, 18, 2), "heads": (6, 12, 24, 48), "window": 12}
RESNET_50 = {"kind": "resnet", "blocks": (3, 4, 6, 3)}


def _panoptic(backbone: dict[str, Any], queries: int = 100) -> dict[str, Any]:
    return {"sizes": {"backbone": backbone, "queries": queries, "labels": 133}}


def _instance(backbone: dict[str, Any], queries: int = 100) -> dict[str, Any]:
    # The authors keep the best hundred whatever their score; transformers stops at one half, and so do proposals.
    return {"sizes": {"backbone": backbone, "queries": queries, "labels": 80}, "task": "instance", "min_score": 0.5}


PRESETS: dict[str, dict[str, Any]] = {
    "random": RANDOM,
    TAUGHT: LEARNER,
    "facebook/mask2former-swin-tiny-coco-panoptic": _panoptic(TINY),
    "facebook/mask2former-swin-small-coco-panoptic": _panoptic(SMALL),
    "facebook/mask2former-swin-base-coco-panoptic": _panoptic(BASE),
    "facebook/mask2former-swin-large-coco-panoptic": _panoptic(LARGE, queries=200),
    "facebook/mask2former-swin-tiny-coco-instance": _instance(TINY),
    "facebook/mask2former-swin-small-coco-instance": _instance(SMALL),
    "facebook/mask2former-swin-base-coco-instance": _instance(BASE),
    "facebook/mask2former-swin-base-IN21k-coco-instance": _instance(BASE),
    "facebook/mask2former-swin-large-coco-instance": _instance(LARGE, queries=200),
    "ClownRat/mask2former-resnet-50-coco-instance": _instance(RESNET_50),
    "mask2former/coco/panoptic/maskformer2_swin_base_IN21k_384_bs16_50ep": _panoptic(BASE),
    "mask2former/coco/panoptic/maskformer2_R50_bs16_50ep": _panoptic(RESNET_50),
    "mask2former/coco/instance/maskformer2_R50_bs16_50ep": _instance(RESNET_50),
}


class Mask2FormerConfig(NetworkConfig):
    """Mask2Former's mask features (pixel decoder, stride 4 of its input) and its panoptic or instance segmentation.

    An image is resized so that its shorter side is `shortest_edge`, or less where its longer side would exceed
    `longest_edge`; then both are rounded up to a multiple of 32. Labels below `things` are countable things.
    `min_score` bounds a region's class score in the panoptic task, class score times mask score in the instance task;
    `min_overlap` is for the first alone, `max_instances` for the second.
    """

    presets = PRESETS

    kind: Literal["mask2former"] = "mask2former"
    backend: Literal["transformers", "detectron2"] = "transformers"
    sizes: Mask2FormerSizes | None = None
    shortest_edge: int = Field(800, gt=0)
    longest_edge: int = Field(1333, gt=0)
    channels: int = Field(256, multiple_of=32, gt=0)
    task: Literal["panoptic", "instance"] = "panoptic"
    things: int = 80
    min_score: float = 0.8
    min_overlap: float = 0.8
    max_instances: int = Field(100, gt=0)

    @property
    def layer(self) -> str:
        return "mask_features"

    @property
    def feature_channels(self) -> int:
        """Of the maps that it gives as a teacher."""
        return self.channels


class Learning(Config):
    """How a network that is taught learns: `steps` of `batch` pictures each, from `pictures` of the pool at most, and judged
    on `held_out` others. `points` are the places in a picture at which each of its regions is compared. The first weights,
    the order of the pictures and the places follow from the teacher's `seed`."""

    steps: int = Field(default=500, ge=1)
    batch: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=50, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    clip: float = Field(default=1.0, gt=0)
    points: int = Field(default=128, ge=1)
    pictures: int = Field(default=2048, ge=1)
    held_out: int = Field(default=64, ge=1)
