"""A store of a few random pictures with dialogues and two teachers' features, made without any stage."""

import hashlib
import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image

from schemas import tables
from schemas.artifact import Artifact
from schemas.dialogue import PromptSlot, Sample, Turn
from schemas.features import FeatureSpec
from schemas.regions import Rle, box_mask
from schemas.storage import Folder
from schemas.tables import Table, plain
from student.config import LossConfig, OptimConfig, TeacherLoss

SHARDS = 2
SPECS = {
    "sam2": FeatureSpec(teacher="sam2", layer="embed", channels=6, grid=(4, 4)),
    "mask2former": FeatureSpec(teacher="mask2former", layer="pixels", channels=5, grid=(8, 8)),
}


def small_loss(**changes) -> LossConfig:
    teachers = {"sam2": TeacherLoss(reads="patches"), "mask2former": TeacherLoss(reads="mask_features")}
    return LossConfig(**{"points": 64, "distillation": teachers, **changes})


FAST = OptimConfig(learning_rate=3e-3, warmup=0.0)


@dataclass(frozen=True)
class Store:
    """The artifacts of one workspace."""

    folder: Folder
    images: Artifact
    samples: Artifact
    features: dict[str, Artifact]


def sealed(folder: Folder, name: str, table: Table, shards: list[pa.Table]) -> Artifact:
    """A complete artifact of these shards."""
    artifact = Artifact(folder.child(name), {"stage": name, "made": 1}, table, len(shards), name)
    for number, rows in enumerate(shards):
        artifact.write(number, rows)
    artifact.seal("2020", "2020", {}, code="", packages={})
    return artifact


def image_row(rng: np.random.Generator, key: str) -> dict:
    """A row of IMAGES: noise of 33 to 64 pixels a side."""
    width, height = (int(side) for side in rng.integers(33, 65, 2))
    data = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(data, "PNG")
    row = {"image_key": key, "width": width, "height": height, "format": "PNG", "bytes": data.getvalue()}
    return row | {"sha256": hashlib.sha256(data.getvalue()).hexdigest(), "aliases": []}


def dialogues(image: dict, split: str = "train") -> list[Sample]:
    """A segmentation of two turns, a caption of a marked region, and a choice."""
    key, height, width = image["image_key"], image["height"], image["width"]
    left = Rle.of(box_mask((0, 0, width // 2, height), height, width))
    nothing = Rle.of(np.zeros((height, width), bool))
    two = [Turn("Please segment the left half here.", "It is [SEG]."), Turn("Please segment a cat here.", "No target [SEG].")]
    told = [Turn("Describe <Prompt1> in detail.", "<Prompt1>: noise on the left")]
    asked = [Turn("Which is <Prompt0>? A. noise B. a cat", "A. noise")]
    return [
        Sample(f"{key}-segmentation-0", key, split, "segmentation", two, [left, nothing]),
        Sample(f"{key}-caption-0", key, split, "caption", told, [], [PromptSlot(1, left)]),
        Sample(f"{key}-choice-0", key, split, "choice", asked, [], [PromptSlot(0, left)]),
    ]


def feature_rows(rng: np.random.Generator, spec: FeatureSpec, keys: list[str]) -> list[dict]:
    maps = (rng.standard_normal((spec.channels, *spec.grid)).astype(np.float32) for _ in keys)
    return [tables.feature_row(spec, key, map_Chw) for key, map_Chw in zip(keys, maps, strict=True)]


def write_store(folder: Folder, rng: np.random.Generator, pictures: int = 8) -> Store:
    """`pictures` random pictures in `SHARDS` shards; the last picture of each shard is for evaluation."""
    keys = [[f"{shard}{row:031x}" for row in range(pictures // SHARDS)] for shard in range(SHARDS)]
    images = [[image_row(rng, key) for key in shard] for shard in keys]
    rows = [
        [plain(sample) for image in shard for sample in dialogues(image, "evaluation" if image is shard[-1] else "train")]
        for shard in images
    ]
    features = {
        name: sealed(
            folder,
            f"features/{name}",
            table := tables.features(spec),
            [table.rows(feature_rows(rng, spec, shard)) for shard in keys],
        )
        for name, spec in SPECS.items()
    }
    return Store(
        folder,
        sealed(folder, "images", tables.IMAGES, [tables.IMAGES.rows(shard) for shard in images]),
        sealed(folder, "samples", tables.SAMPLES, [tables.SAMPLES.rows(shard) for shard in rows]),
        features,
    )
