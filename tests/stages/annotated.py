"""Annotation files about one picture of 40 x 30 pixels, and the row that they give it."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from schemas.config import Compat, parse
from schemas.regions import Rle
from stages.sources.config import CocoSource
from stages.sources.draft import Draft
from stages.sources.pages import pages, place

WIDTH, HEIGHT, NAME = 40, 30, "a.png"
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 7, "name": "sky", "isthing": 0}]
LEFT = [0, 0, 20, 0, 20, 30, 0, 30]
RIGHT = [20, 0, 40, 0, 40, 30, 20, 30]
HOSTILE = "[SEG]", "<p> a cat </p>", "<object0>", "<Prompt3>", "<|im_end|>"  # what no text from outside may say


def rle(mask_HW: np.ndarray) -> dict[str, Any]:
    made = Rle.of(mask_HW)
    return {"size": [made.height, made.width], "counts": made.counts}


def left_half() -> np.ndarray:
    mask_HW = np.zeros((HEIGHT, WIDTH), bool)
    mask_HW[:, :20] = True
    return mask_HW


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": 5, "category_id": 1, "segmentation": [LEFT], "bbox": [0, 0, 20, 30]} | changes


def coco(annotations: list[Any], **changes: Any) -> dict[str, Any]:
    images = [{"id": 5, "file_name": NAME, "width": WIDTH, "height": HEIGHT}]
    return {"images": images, "categories": CATEGORIES, "annotations": annotations} | changes


def reference(ann_id: Any, *texts: str, split: str | None = "train") -> dict[str, Any]:
    sentences = [{"sent_id": number, "raw": text.upper(), "sent": text} for number, text in enumerate(texts)]
    return {"ref_id": 3, "ann_id": ann_id, "image_id": 5, "split": split, "sentences": sentences}


class Files:
    """Annotation files in a folder, and the row that they give the picture."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.fields: dict[str, list[Any]] = {"instances": []}

    def add(self, kind: str, file: str, data: Any, **config: Any) -> "Files":
        path = self.folder / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(data, 2) if file.endswith(".p") else json.dumps(data).encode())
        self.fields.setdefault(kind, []).append({"path": str(path)} | config)
        return self

    def source(self) -> CocoSource:
        return parse(CocoSource, {"images": [str(self.folder)], **self.fields}, "test")

    def draft(self, compat: Compat = "correct") -> Draft:
        draft = Draft(WIDTH, HEIGHT)
        for file in self.source().files(compat):
            for page in pages(file):
                assert page.address in {("name", NAME), ("id", "5")}
                place(draft, file, page)
        return draft


def kinds(draft: Draft) -> list[str]:
    return [fault.split(":")[0] for fault in draft.faults]


def panoptic(files: Files, segments: list[dict[str, Any]], ids_HW: np.ndarray) -> Files:
    (files.folder / "panoptic").mkdir()
    colours = np.stack([ids_HW & 255, ids_HW >> 8 & 255, ids_HW >> 16], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(files.folder / "panoptic" / "5.png")
    return files.add("panoptic", "panoptic.json", coco([{"image_id": 5, "file_name": "5.png", "segments_info": segments}]))
