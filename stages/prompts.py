"""SEGMENTS -> PROMPTS: points, boxes, scribbles and masks that point at each segment.

A mark lies inside its segment (a box around it), is drawn from (seed, image, segment) alone, and covers one pixel at least.
Points keep away from the edge as the authors' augmentation does (reference 6.9): a random pixel deeper than `depth`, else
the deepest one.
"""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from schemas.regions import PromptKind, Rle, Segment, VisualPrompt, box_mask
from schemas.tables import PROMPTS, Table, revive, without
from stages.base import Inputs, MapStage, Resources, ShardFunction, Tables


class PromptsStage(MapStage):
    kinds: tuple[PromptKind, ...] = ("point", "box", "scribble", "mask")
    depth: int = 4
    scribble_points: int = 4
    scribble_width: int = 3
    seed: int = 0

    def table(self) -> Table:
        return PROMPTS

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        return self.draw

    def draw(self, inputs: Tables) -> pa.Table:
        rows = inputs["segments"].to_pylist()
        unfit = sum(not _fit(segment) for row in rows for segment in revive(list[Segment], row["segments"]))
        return without(PROMPTS.rows([self._row(row) for row in rows]), {"crowds and empty segments": unfit})

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        segments = filter(_fit, revive(list[Segment], row["segments"]))
        prompts = [prompt for segment in segments for prompt in self._prompts(row["image_key"], segment)]
        return {"image_key": row["image_key"], "prompts": prompts, "error": row["error"]}

    def _prompts(self, image_key: str, segment: Segment) -> list[VisualPrompt]:
        rng = generator(self.seed, image_key, segment.segment_id)
        mask, text = segment.rle.mask(), segment.caption or segment.category
        prompts: list[VisualPrompt] = []
        for kind in self.kinds:
            xy, marked = self._draw(kind, mask, rng)
            prompts.append(VisualPrompt(segment.segment_id, kind, xy, Rle.of(marked), text))
        return prompts

    def _draw(self, kind: PromptKind, mask: np.ndarray, rng: np.random.Generator) -> tuple[list[float], np.ndarray]:
        match kind:
            case "point":
                x, y = interior_points(mask, 1, self.depth, rng)[0]
                return [float(x), float(y)], box_mask((x, y, x + 1, y + 1), *mask.shape)
            case "box":
                box = Rle.of(mask).box
                return list(box), box_mask(box, *mask.shape)
            case "scribble":
                return self._scribble(mask, rng)
            case "mask":
                return [], mask

    def _scribble(self, mask: np.ndarray, rng: np.random.Generator) -> tuple[list[float], np.ndarray]:
        """A polyline through interior points, ordered along the longer side, kept to the segment."""
        points = interior_points(mask, self.scribble_points, self.depth, rng)
        wide = np.ptp(np.nonzero(mask)[1]) >= np.ptp(np.nonzero(mask)[0])
        points = points[np.argsort(points[:, 0 if wide else 1], kind="stable")]
        xy = [float(value) for value in points.ravel()]
        canvas = Image.new("1", (mask.shape[1], mask.shape[0]))
        ImageDraw.Draw(canvas).line(xy, fill=1, width=self.scribble_width, joint="curve")
        ImageDraw.Draw(canvas).point(xy, fill=1)
        return xy, np.asarray(canvas) & mask


def _fit(segment: Segment) -> bool:
    """Whether one can point at it."""
    return not segment.is_crowd and segment.rle.area > 0


def generator(seed: int, *names: Any) -> np.random.Generator:
    """A generator that depends on `seed` and the names alone."""
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def interior_points(mask: np.ndarray, count: int, depth: int, rng: np.random.Generator) -> np.ndarray:
    """`count` pixels (x, y) drawn from those at least `depth` pixels inside the mask, or from the deepest there are."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = rows[0], columns[0]
    core = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    for _ in range(depth):
        eroded = _eroded(core)
        if not eroded.any():
            break
        core = eroded
    y, x = np.nonzero(core)
    chosen = rng.integers(len(x), size=count)
    return np.stack([x[chosen] + left, y[chosen] + top], axis=1)


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The pixels whose four neighbours are in the mask too; what lies beyond the border counts as outside."""
    inner = np.zeros_like(mask)
    centre = mask[1:-1, 1:-1]
    inner[1:-1, 1:-1] = centre & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return inner
