"""Regions of an image: run-length masks, segments and visual prompts, and the arithmetic between them.

Masks are bool HW at the image's own size. Boxes are XYXY in pixels, upper bounds exclusive. Points are (x, y) in pixels.
Run-length encoding is COCO's compressed form, column-major, through pycocotools.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from schemas.errors import DataError

PromptKind = Literal["point", "box", "scribble", "mask"]
VOID = 255  # the value of a pixel that is no part of a target and does not count against it


@dataclass(frozen=True)
class Rle:
    """A mask of `height` x `width`, COCO compressed counts."""

    height: int
    width: int
    counts: str

    @classmethod
    def of(cls, mask_HW: np.ndarray) -> "Rle":
        from pycocotools import mask as coco

        packed: Any = coco.encode(np.asfortranarray(mask_HW, dtype=np.uint8))
        return cls(int(mask_HW.shape[0]), int(mask_HW.shape[1]), packed["counts"].decode("ascii"))

    @classmethod
    def from_coco(cls, segmentation: Any, height: int, width: int) -> "Rle":
        """A COCO `segmentation`: polygons (their union), uncompressed or compressed RLE; nonsense raises `DataError`."""
        from pycocotools import mask as coco

        if isinstance(segmentation, list):
            return cls.union(cls.parts(segmentation, height, width), height, width)
        if not isinstance(segmentation, dict) or "counts" not in segmentation:
            raise DataError("a segmentation must be polygons or an RLE with 'counts'")
        if list(segmentation.get("size", [height, width])) != [height, width]:
            raise DataError(f"the RLE is of size {segmentation['size']}, its image of [{height}, {width}]")
        counts = segmentation["counts"]
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts, default=0) < 0:
                raise DataError(f"the RLE covers {sum(counts)} pixels, its image has {height * width}")
            whole: Any = {"size": [height, width], "counts": counts}
            packed: Any = coco.frPyObjects(whole, height, width)
            counts = packed["counts"]
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        _check_counts(text, height * width)
        return cls(height, width, text)

    @classmethod
    def parts(cls, segmentation: Any, height: int, width: int) -> "list[Rle]":
        """A COCO `segmentation` piece by piece: each of its flat XY polygons, clipped to the image, or the RLE that it is."""
        from pycocotools import mask as coco

        if not isinstance(segmentation, list):
            return [cls.from_coco(segmentation, height, width)]
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(np.asarray(polygon, dtype=float)).all():
                raise DataError("a polygon needs at least three finite XY pairs")
        bounds = [width, height]
        clipped = [np.clip(np.reshape(polygon, (-1, 2)), 0, bounds).ravel().tolist() for polygon in segmentation]
        drawn: Any = coco.frPyObjects(clipped, height, width) if clipped else []
        return [cls(height, width, each["counts"].decode("ascii")) for each in drawn]

    @classmethod
    def union(cls, parts: "Sequence[Rle]", height: int, width: int) -> "Rle":
        """What any of the parts covers."""
        from pycocotools import mask as coco

        if not parts:
            return cls.of(np.zeros((height, width), dtype=bool))
        merged: Any = coco.merge([part.coco() for part in parts])
        return cls(height, width, merged["counts"].decode("ascii"))

    def mask(self) -> np.ndarray:
        """bool HW."""
        from pycocotools import mask as coco

        return coco.decode(self.coco()).astype(bool)

    def coco(self) -> Any:
        return {"size": [self.height, self.width], "counts": self.counts.encode("ascii")}

    @property
    def area(self) -> int:
        from pycocotools import mask as coco

        return int(coco.area(self.coco()))

    @property
    def box(self) -> tuple[float, float, float, float]:
        """XYXY; all zero for an empty mask."""
        from pycocotools import mask as coco

        x, y, w, h = (float(value) for value in coco.toBbox(self.coco()))
        return x, y, x + w, y + h


def _check_counts(text: str, pixels: int) -> None:
    """Refuse compressed counts that do not cover exactly the image: the C decoder would write past its buffer. It shifts
    32 bits, too, and misreads what has more; six groups of five are all that runs below 2^29 need."""
    runs, position = [], 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            if shift == 30:
                raise DataError("the RLE's counts hold a number of more than 30 bits")
            if position >= len(text):
                raise DataError("the RLE's counts end in the middle of a number")
            character = ord(text[position]) - 48
            if not 0 <= character < 64:
                raise DataError("the RLE's counts hold a character outside its alphabet")
            value |= (character & 0x1F) << shift
            more, position, shift = bool(character & 0x20), position + 1, shift + 5
            if not more and character & 0x10:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    if sum(runs) != pixels or min(runs, default=0) < 0:
        raise DataError(f"the RLE covers {sum(runs)} pixels, its image has {pixels}")


@dataclass(frozen=True)
class Level:
    """The pixels of a target that are worth `value`, and not 0 or 1: so many of its parts cover them, or they are `VOID`."""

    value: int
    rle: Rle


def overlaps(parts: Sequence[Rle]) -> list[Level]:
    """Where two parts of a target and more cover the same pixels. Most often that is nowhere."""
    if len(parts) < 2 or sum(part.area for part in parts) == Rle.union(parts, parts[0].height, parts[0].width).area:
        return []
    counts_HW = np.zeros((parts[0].height, parts[0].width), np.uint8)
    for part in parts:
        counts_HW += part.mask() & (counts_HW < VOID - 1)
    return [Level(value, Rle.of(counts_HW == value)) for value in np.unique(counts_HW).tolist() if value > 1]


def valued(rle: Rle, levels: Sequence[Level]) -> np.ndarray:
    """uint8 HW: what each pixel of a target is worth: 1 where `rle` is, 0 beside it, and otherwise what its levels say."""
    values_HW = rle.mask().astype(np.uint8)
    for level in levels:
        values_HW[level.rle.mask()] = level.value
    return values_HW


@dataclass(frozen=True)
class Segment:
    """One region of an image with a name: an annotated object, or a teacher's proposal (`source` says whose)."""

    segment_id: int
    category: str
    is_thing: bool
    is_crowd: bool
    score: float
    source: str
    rle: Rle
    caption: str = ""


@dataclass(frozen=True)
class VisualPrompt:
    """A mark that points at a segment. `coordinates` is flat XY: a point, a box's XYXY, a scribble's vertices, none for a
    mask; `rle` is the pixels that the mark covers, and is what the student sees."""

    segment_id: int
    kind: PromptKind
    coordinates: Sequence[float]
    rle: Rle
    text: str


def box_mask(box: Sequence[float], height: int, width: int) -> np.ndarray:
    """bool HW, true inside XYXY `box` clipped to the image; a box that is not finite raises `DataError`."""
    if not np.isfinite(np.asarray(box, dtype=float)).all():
        raise DataError(f"the box {list(box)} is not finite")
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    mask = np.zeros((height, width), dtype=bool)
    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    return mask


def mask_overlaps(one: Rle, others: Sequence[Rle]) -> np.ndarray:
    """(len(others),) intersection over union of `one` with each."""
    from pycocotools import mask as coco

    return np.asarray(coco.iou([one.coco()], [other.coco() for other in others], [0] * len(others)))[0]


def intersection_over_union(a_HW: np.ndarray, b_HW: np.ndarray) -> tuple[int, int]:
    """(pixels in both, pixels in either)."""
    return int(np.logical_and(a_HW, b_HW).sum()), int(np.logical_or(a_HW, b_HW).sum())
