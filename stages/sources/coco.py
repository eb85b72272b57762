"""COCO instances and COCO panoptic: the objects of a picture.

Instances carry source "instances" and their annotation id. Panoptic segments carry source "panoptic" and the id that is
R + 256 G + 65536 B in their PNG. Where both describe a picture, a panoptic thing that is an instance already is not taken up
again: what is said of it is said of the instance.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.pictures import decode
from schemas.regions import Rle, Segment
from schemas.storage import Folder
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable, integer, storable
from stages.sources.listing import readable

Address = tuple[str, str]


@dataclass(frozen=True)
class Lists:
    """What a COCO file says once for all its records: its pictures and its categories."""

    pictures: Mapping[str, Mapping[str, Any]]
    categories: Mapping[int, tuple[str, bool]]
    seen: set[Any] = field(default_factory=set)

    @classmethod
    def of(cls, data: Any) -> "Lists":
        tables = data if isinstance(data, dict) else {}
        pictures = {storable(str(picture["id"])): picture for picture in tables.get("images", [])}
        categories = tables.get("categories", [])
        return cls(pictures, {each["id"]: (storable(str(each["name"])), bool(each.get("isthing", 1))) for each in categories})

    def address(self, image_id: Any) -> Address:
        """How the pool is asked for a picture: by its file name where the file lists it, else by its number."""
        number = storable(str(image_id))
        picture = self.pictures.get(number)
        return ("id", number) if picture is None else ("name", readable(picture["file_name"]))

    def once(self, key: Any, what: str) -> None:
        if key in self.seen:
            raise Unusable("duplicate id", f"{what} occurs twice in the file")
        self.seen.add(key)


def flatten_instance(record: Any, lists: Lists) -> list[Statement]:
    number = integer(record["id"])
    lists.once(number, f"annotation {number}")
    picture = lists.pictures.get(storable(str(record["image_id"])), {})
    return [
        {
            "what": f"annotation {number}",
            "id": number,
            "category": lists.categories.get(record["category_id"]),
            "category_id": record["category_id"],
            "size": (picture.get("width"), picture.get("height")),
            "box": record.get("bbox"),
            "segmentation": record["segmentation"],
            "crowd": bool(record.get("iscrowd", 0)),
        }
    ]


def add_instance(draft: Draft, file: SourceFile, statement: Statement) -> None:
    name, _ = _category(statement)
    same_size(draft, *statement["size"])
    box = statement["box"]
    if box is not None and not np.isfinite(np.asarray(box, dtype=float)).all():
        raise Unusable("not finite", f"its box is {box}")
    rle = draft.region(statement["segmentation"])
    crowd = statement["crowd"]
    draft.add(
        "instances", Segment(statement["id"], name, is_thing=True, is_crowd=crowd, score=1.0, source="instances", rle=rle)
    )
    draft.drawn[draft.known(statement["id"], "instances")] = statement["segmentation"]


def flatten_panoptic(record: Any, lists: Lists) -> list[Statement]:
    return [_panoptic_statement(record, segment, lists) for segment in record["segments_info"]]


def _panoptic_statement(record: Any, segment: Any, lists: Lists) -> Statement:
    number = integer(segment["id"])
    statement: Statement = {
        "what": f"segment {number} of {record['file_name']}",
        "id": number,
        "category": lists.categories.get(segment["category_id"]),
        "category_id": segment["category_id"],
        "crowd": bool(segment.get("iscrowd", 0)),
        "png": record["file_name"],
    }
    try:
        lists.once((record["image_id"], number), f"segment {number}")
    except Unusable as error:
        return statement | {"fault": (error.kind, error.what)}
    return statement


def segment_adder() -> Callable[[Draft, SourceFile, Statement], None]:
    """A function that adds panoptic segments; it decodes the PNG that it needs once."""
    return functools.partial(_add_segment, functools.lru_cache(maxsize=1)(_segment_ids))


def _add_segment(ids_of: Callable[[Folder, str], np.ndarray], draft: Draft, file: SourceFile, statement: Statement) -> None:
    name, is_thing = _category(statement)
    assert file.masks is not None, "a panoptic file has a folder of PNGs"
    ids_HW = ids_of(file.masks, statement["png"])
    same_size(draft, ids_HW.shape[1], ids_HW.shape[0])
    mask_HW = ids_HW == statement["id"]
    if not mask_HW.any():
        raise Unusable("empty", "no pixel of its PNG has this id")
    number, crowd = statement["id"], statement["crowd"]
    segment = Segment(number, name, is_thing, is_crowd=crowd, score=1.0, source="panoptic", rle=Rle.of(mask_HW))
    twin = draft.twin(segment) if is_thing and not crowd else None
    if twin:
        draft.also_known("panoptic", number, twin)
    else:
        draft.add("panoptic", segment)


def _segment_ids(masks: Folder, name: str) -> np.ndarray:
    """HW int32, column-major as run-length encoding wants it."""
    try:
        pixels_HWC = decode(masks.read(name)).astype(np.int32)
    except OSError:
        raise Unusable("mask", f"there is no PNG {name}") from None
    return np.asfortranarray(pixels_HWC @ np.array((1, 256, 65536), np.int32))


def _category(statement: Statement) -> tuple[str, bool]:
    if statement["category"] is None:
        raise Unusable("category", f"the file lists no category {statement['category_id']}")
    return statement["category"]


def same_size(draft: Draft, width: Any, height: Any) -> None:
    """Masks drawn on a picture of another size (or not upright) would lie elsewhere."""
    if width is not None and height is not None and (width, height) != (draft.width, draft.height):
        raise Unusable("size", f"drawn on {width} x {height} pixels, the picture has {draft.width} x {draft.height}")
