"""A scene as records of the public formats: COCO instances and panoptic, RefCOCO, gRefCOCO, Pix2Cap, PerBench."""

import io
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from stages.sources.shapes.questions import Choice, Pointer
from stages.sources.shapes.scene import KINDS, TEXTURES, Region, Scene

Record = dict[str, Any]

THINGS = {kind: number for number, kind in enumerate(KINDS, start=1)}
STUFF = {name: number for number, name in enumerate(TEXTURES, start=101)}


def thing_categories() -> list[Record]:
    return [{"id": number, "name": kind, "supercategory": "shape"} for kind, number in THINGS.items()]


def panoptic_categories() -> list[Record]:
    things = [category | {"isthing": 1} for category in thing_categories()]
    stuff = [{"id": number, "name": name, "supercategory": "ground", "isthing": 0} for name, number in STUFF.items()]
    return [category | {"color": _category_colour(category["id"])} for category in things + stuff]


def _category_colour(number: int) -> list[int]:
    """Any fixed colour that tells the category from the others on a page."""
    return [number * 67 % 256, number * 131 % 256, number * 197 % 256]


def rle(region: Region) -> Record:
    """COCO's compressed run lengths, as JSON takes them."""
    packed: Any = coco_mask.encode(np.asfortranarray(region.mask_HW, np.uint8))
    return {"size": packed["size"], "counts": packed["counts"].decode("ascii")}


def annotation(scene: Scene, number: int, *, ann_id: int, image_id: int) -> Record:
    """COCO instance of one shape: its outline as polygon, or run lengths where it is partly hidden or has a hole."""
    polygon = [] if scene.hidden[number] else scene.shapes[number].polygon()
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": THINGS[scene.shapes[number].kind],
        "segmentation": [polygon] if polygon else rle(scene.regions[number]),
        **_extent(scene.regions[number]),
    }


def _extent(region: Region) -> Record:
    return {"bbox": list(region.box), "area": region.area, "iscrowd": 0}


def panoptic(scene: Scene, colours_N3: np.ndarray, *, image_id: int, file_name: str) -> Record:
    """The panoptic annotation, shapes first in their order, then textures; colour n marks label n in its PNG."""
    names = [THINGS[shape.kind] for shape in scene.shapes] + [STUFF[texture.name] for texture in scene.textures]
    ids = (colours_N3 @ np.array([1, 256, 65536])).tolist()
    segments = [
        {"id": number, "category_id": category, **_extent(region)}
        for number, category, region in zip(ids, names, scene.regions, strict=True)
    ]
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments}


def segment_colours(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """N3 uint8, one a label: random, all different, none of them black, which means no segment."""
    count = len(scene.regions)
    while True:
        colours_N3 = rng.integers(0, 256, (count, 3), dtype=np.uint8)
        if len(set(map(tuple, colours_N3.tolist()))) == count and colours_N3.any(axis=1).all():
            return colours_N3


def encoded(pixels_HWC: np.ndarray, form: str) -> bytes:
    """The bytes of a PNG, or of a JPEG at quality 90."""
    stream = io.BytesIO()
    options = {"quality": 90} if form == "JPEG" else {"compress_level": 1}
    Image.fromarray(pixels_HWC).save(stream, form, **options)
    return stream.getvalue()


def multiple_choice(scene: Scene, image_name: str, found: list[Choice]) -> Record:
    asked = [
        {"object": rle(scene.regions[choice.number]), "question": choice.question, "answer": choice.answer} for choice in found
    ]
    return {"image_name": image_name, "mcqs": asked}


def reference(scene: Scene, image_name: str, pointer: Pointer) -> Record:
    return {
        "image_name": image_name,
        "question": pointer.question,
        "answer": "<object2>",
        "segmentations": {"<object1>": rle(scene.regions[pointer.prompt]), "<object2>": rle(scene.regions[pointer.target])},
    }
