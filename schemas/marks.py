"""Marks: a point, a box, a scribble or the whole mask, drawn to point at a region.

A mark lies inside its region (a box around it) and covers one pixel at least. Points keep away from the edge as the authors'
augmentation does (reference 6.9): a random pixel deeper than `depth`, else the deepest one. The stage of prompts draws each
once, to be looked at and asked with; training draws its own at every visit.

Masks are bool HW at the image's own size, points (x, y) in pixels.
"""

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from schemas.config import Config
from schemas.regions import PromptKind, Rle, box_mask


class Pen(Config):
    """How marks are drawn: points `depth` pixels inside the region, scribbles through `scribble_points` of those, with a
    line `scribble_width` pixels wide."""

    depth: int = Field(default=4, ge=0)
    scribble_points: int = Field(default=4, ge=2)
    scribble_width: int = Field(default=3, ge=1)

    def draw(self, kind: PromptKind, mask_HW: np.ndarray, rng: np.random.Generator) -> tuple[list[float], np.ndarray]:
        """(flat XY coordinates as in `VisualPrompt`, the pixels that the mark covers) for a region of one pixel at least."""
        match kind:
            case "point":
                x, y = interior_points(mask_HW, 1, self.depth, rng)[0]
                return [float(x), float(y)], box_mask((x, y, x + 1, y + 1), *mask_HW.shape)
            case "box":
                box = Rle.of(mask_HW).box
                return list(box), box_mask(box, *mask_HW.shape)
            case "scribble":
                return self._scribble(mask_HW, rng)
            case "mask":
                return [], mask_HW

    def _scribble(self, mask_HW: np.ndarray, rng: np.random.Generator) -> tuple[list[float], np.ndarray]:
        """A polyline through interior points, ordered along the longer side, kept to the region."""
        points = interior_points(mask_HW, self.scribble_points, self.depth, rng)
        rows, columns = _extent(mask_HW)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        points = points[np.argsort(points[:, 0 if width >= height else 1], kind="stable")]
        canvas = Image.new("1", (width, height))
        line = [float(value) for value in (points - (columns.start, rows.start)).ravel()]
        ImageDraw.Draw(canvas).line(line, fill=1, width=self.scribble_width, joint="curve")
        ImageDraw.Draw(canvas).point(line, fill=1)
        marked_HW = np.zeros_like(mask_HW)
        marked_HW[rows, columns] = np.asarray(canvas) & mask_HW[rows, columns]
        return [float(value) for value in points.ravel()], marked_HW


def interior_points(mask_HW: np.ndarray, count: int, depth: int, rng: np.random.Generator) -> np.ndarray:
    """`count` pixels (x, y) drawn from those at least `depth` pixels inside the mask, or from the deepest there are."""
    rows, columns = _extent(mask_HW)
    core = mask_HW[rows, columns]
    for _ in range(depth):
        eroded = _eroded(core)
        if not eroded.any():
            break
        core = eroded
    inside = np.flatnonzero(core)
    y, x = divmod(inside[rng.integers(len(inside), size=count)], core.shape[1])
    return np.stack([x + columns.start, y + rows.start], axis=1)


def _extent(mask_HW: np.ndarray) -> tuple[slice, slice]:
    """The rows and the columns from the first to the last that the mask has a pixel in."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _eroded(mask_HW: np.ndarray) -> np.ndarray:
    """The pixels whose four neighbours are in the mask too; what lies beyond the border counts as outside."""
    inner = np.zeros_like(mask_HW)
    centre = mask_HW[1:-1, 1:-1]
    inner[1:-1, 1:-1] = centre & mask_HW[:-2, 1:-1] & mask_HW[2:, 1:-1] & mask_HW[1:-1, :-2] & mask_HW[1:-1, 2:]
    return inner
