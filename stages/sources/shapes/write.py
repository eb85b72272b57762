"""Render the scenes of a config into a folder, pictures first and then one file for each public format.

    train/000000000001.jpg ..   eval/000000002001.jpg ..   every tenth a PNG
    instances.json              COCO instances of all pictures
    panoptic.json, panoptic/    COCO panoptic, id = R + 256 G + 65536 B
    refs.p                      RefCOCO references, split train or val
    grefs.json                  gRefCOCO references that name nothing
    captions.json               Pix2Cap: a description for each thing segment of panoptic.json
    perbench/                   detailed_caption.json, mcq.json, vres.json of the evaluation scenes
    train_mcq.json, train_vres.json     the same of the training scenes

A scene is a pure function of (seed, index), so a second run writes the same bytes. It composes every scene anew, for the
records, which is quick, and paints only those whose pictures do not lie there.
"""

import json
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from schemas.storage import Folder
from stages.sources.shapes import records
from stages.sources.shapes.config import ShapesConfig
from stages.sources.shapes.language import absent, expressions
from stages.sources.shapes.questions import choices, describe, pointers
from stages.sources.shapes.records import Record
from stages.sources.shapes.render import paint
from stages.sources.shapes.scene import Scene, compose

PICTURE, WORDS = 1, 2  # streams of randomness beside the scene's own, so that neither moves the other
ABSENT = 0.22  # no-target expressions a shape: about 8 % of all expressions
QUESTIONS = 2  # of each sort a scene
PICKLE_PROTOCOL = 4
SETTLED = "settled"


def write_shapes(config: ShapesConfig, folder: Folder, progress: Callable[[int, int], None]) -> list[str]:
    """The names of the files written, in order; `progress` is told (scenes done, scenes in all) about a hundred times."""
    catalogue, fresh = _Catalogue(), []
    total = config.train + config.evaluation
    names, there, settled = [], folder.tree(), _settled(folder)
    for index in range(total):
        page = _Page.of(config, index)
        catalogue.add(page)
        for name, draw in _pictures(config, page).items():
            names.append(name)
            if index >= settled or name not in there:
                folder.write(name, draw(), durable=False)
                fresh.append(name)
        done = index + 1
        if done == total or done % math.ceil(total / 100) == 0:
            folder.settle(fresh)
            folder.write(SETTLED, str(done).encode())
            fresh.clear()
            progress(done, total)
    for name, data in catalogue.files().items():
        folder.write(name, data, durable=False)
        names.append(name)
    folder.remove(SETTLED)
    return names


def _settled(folder: Folder) -> int:
    """The number of scenes whose pictures a power cut cannot have touched. Later ones may lie there with a hole in them, and
    are drawn again."""
    return int(folder.read(SETTLED)) if folder.exists(SETTLED) else 0


@dataclass(frozen=True)
class _Page:
    """A scene, the file of its picture, and what its records say of that; `words` is the randomness of what is said."""

    scene: Scene
    image_id: int
    split: str
    name: str
    colours_N3: np.ndarray
    words: np.random.Generator

    @classmethod
    def of(cls, config: ShapesConfig, index: int) -> "_Page":
        scene = compose(np.random.default_rng([config.seed, index]), side=config.size, objects=config.objects)
        words = np.random.default_rng([config.seed, index, WORDS])
        image_id, (folder, split) = index + 1, ("train", "train") if index < config.train else ("eval", "val")
        name = f"{folder}/{image_id:012}.{'jpg' if image_id % 10 else 'png'}"
        return cls(scene, image_id, split, name, records.segment_colours(words, scene), words)

    @property
    def png_name(self) -> str:
        return f"{self.image_id:012}.png"


def _pictures(config: ShapesConfig, page: _Page) -> dict[str, Callable[[], bytes]]:
    """name -> what makes the bytes of it: the picture of the scene, and its panoptic PNG."""

    def photograph() -> bytes:
        pixels_HWC = paint(page.scene, np.random.default_rng([config.seed, page.image_id - 1, PICTURE]))
        return records.encoded(pixels_HWC, "PNG" if page.name.endswith("png") else "JPEG")

    def segmentation() -> bytes:
        return records.encoded(page.colours_N3.take(page.scene.labels_HW, axis=0), "PNG")

    return {page.name: photograph, f"panoptic/{page.png_name}": segmentation}


@dataclass
class _Catalogue:
    """The records of all scenes so far, file by file, with the running ids that join them."""

    images: list[Record] = field(default_factory=list)
    instances: list[Record] = field(default_factory=list)
    panoptic: list[Record] = field(default_factory=list)
    refs: list[Record] = field(default_factory=list)
    grefs: list[Record] = field(default_factory=list)
    captions: list[Record] = field(default_factory=list)
    detailed: list[Record] = field(default_factory=list)
    mcqs: dict[str, list[Record]] = field(default_factory=lambda: {"train": [], "val": []})
    vres: dict[str, list[Record]] = field(default_factory=lambda: {"train": [], "val": []})
    _ref_ids: count = field(default_factory=lambda: count(1))
    _sent_ids: count = field(default_factory=lambda: count(1))

    def add(self, page: _Page) -> None:
        side = page.scene.side
        self.images.append({"id": page.image_id, "file_name": page.name, "width": side, "height": side})
        for number in page.scene.numbers:
            self._add_shape(page, number)
        self._add_segments(page)
        self._add_questions(page)

    def _add_shape(self, page: _Page, number: int) -> None:
        rng, ann_id = page.words, len(self.instances) + 1
        found = records.annotation(page.scene, number, ann_id=ann_id, image_id=page.image_id)
        self.instances.append(found)
        target = {"ann_id": ann_id, "category_id": found["category_id"]}
        self.refs.append(self._reference(page, target, expressions(page.scene, number, rng)))
        missing = absent(page.scene, number, rng) if rng.random() < ABSENT else None
        if missing:
            nothing = {"ann_id": [-1], "category_id": [-1], "no_target": True}
            self.grefs.append(self._reference(page, nothing, [missing]))

    def _reference(self, page: _Page, target: Record, texts: list[str]) -> Record:
        place = {"image_id": page.image_id, "split": page.split, "file_name": page.name}
        said = [{"raw": text, "sent": text, "sent_id": next(self._sent_ids), "tokens": text.split()} for text in texts]
        return {"ref_id": next(self._ref_ids)} | target | place | {"sentences": said}

    def _add_segments(self, page: _Page) -> None:
        segments = records.panoptic(page.scene, page.colours_N3, image_id=page.image_id, file_name=page.png_name)
        self.panoptic.append(segments)
        texts = [describe(page.scene, number, page.words) for number in page.scene.numbers]
        ids = [segment["id"] for segment in segments["segments_info"]]
        described = [{"id": segment, "description": text} for segment, text in zip(ids, texts, strict=False)]
        place = {"image_id": page.image_id, "file_name": page.png_name, "split": page.split}
        self.captions.append(place | {"segments_info": described})
        if page.split == "val":
            masks = [records.rle(page.scene.regions[number]) for number in page.scene.numbers]
            objects = [{"segmentation": mask, "caption": text} for mask, text in zip(masks, texts, strict=True)]
            self.detailed.append({"image_name": page.name, "object_annotations": objects})

    def _add_questions(self, page: _Page) -> None:
        asked = choices(page.scene, page.words, QUESTIONS)
        self.mcqs[page.split].append(records.multiple_choice(page.scene, page.name, asked))
        pointed = pointers(page.scene, page.words, QUESTIONS)
        self.vres[page.split] += [records.reference(page.scene, page.name, pointer) for pointer in pointed]

    def files(self) -> dict[str, bytes]:
        instances = {"images": self.images, "annotations": self.instances, "categories": records.thing_categories()}
        panoptic = {"images": self.images, "annotations": self.panoptic, "categories": records.panoptic_categories()}
        tables = {
            "instances.json": instances,
            "panoptic.json": panoptic,
            "grefs.json": self.grefs,
            "captions.json": {"images": self.images, "annotations": self.captions},
            "perbench/detailed_caption.json": self.detailed,
            "perbench/mcq.json": self.mcqs["val"],
            "perbench/vres.json": self.vres["val"],
            "train_mcq.json": self.mcqs["train"],
            "train_vres.json": self.vres["train"],
        }
        texts = {name: json.dumps(table).encode() for name, table in tables.items()}
        return texts | {"refs.p": pickle.dumps(self.refs, PICKLE_PROTOCOL)}
