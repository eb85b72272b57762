"""IMAGES and ANNOTATIONS of the quickstart's scenes, drawn straight into tables."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from schemas.annotations import STATEMENTS, Caption
from schemas.artifact import Artifact
from schemas.pictures import image_key
from schemas.regions import Rle, Segment
from schemas.tables import ANNOTATIONS, IMAGES
from stages.sources.shapes.records import encoded
from stages.sources.shapes.render import paint
from stages.sources.shapes.scene import compose

Row = dict[str, Any]


def scenes(train: int, evaluation: int, side: int = 64) -> Iterator[tuple[Row, Row]]:
    """(row of IMAGES, row of ANNOTATIONS) of each scene; the last ones have a statement to be evaluated."""
    for number in range(train + evaluation):
        scene = compose(np.random.default_rng([7, number]), side=side, objects=(2, 3))
        data = encoded(paint(scene, np.random.default_rng([7, number, 1])), "PNG")
        key = image_key(paint(scene, np.random.default_rng([7, number, 1])))
        names = [(shape.kind, True) for shape in scene.shapes] + [(texture.name, False) for texture in scene.textures]
        objects = [
            Segment(place, name, is_thing, False, 1.0, "scene", Rle.of(region.mask_HW))
            for place, ((name, is_thing), region) in enumerate(zip(names, scene.regions, strict=True), start=1)
        ]
        size = {"image_key": key, "width": side, "height": side}
        split = "train" if number < train else "evaluation"
        said = {column: [] for column in STATEMENTS} | {"captions": [Caption(1, "It is there.", split, "scene")]}
        digest = hashlib.sha256(data).hexdigest()
        image = size | {"format": "PNG", "bytes": data, "sha256": digest, "aliases": [f"{number}.png"]}
        yield image, size | said | {"objects": objects, "faults": []}


def write(images: Artifact, annotations: Artifact, pairs: Sequence[tuple[Row, Row]]) -> None:
    """Both artifacts, the pairs dealt over their shards."""
    for number in range(images.shards):
        dealt = pairs[number :: images.shards]
        images.write(number, IMAGES.rows([image for image, _ in dealt]))
        annotations.write(number, ANNOTATIONS.rows([said for _, said in dealt]))
    for artifact in (images, annotations):
        artifact.seal("2025-01-01", "2025-01-02", {}, code="", packages={})
