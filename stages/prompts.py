"""SEGMENTS -> PROMPTS: a point, a box, a scribble and a mask on each segment, drawn from (seed, image, segment) alone."""

from typing import Any

import pyarrow as pa

from schemas.chance import generator
from schemas.marks import Pen
from schemas.regions import PromptKind, Rle, Segment, VisualPrompt
from schemas.tables import PROMPTS, Table, revive, without
from stages.base import Inputs, MapStage, Resources, ShardFunction, Tables


class PromptsStage(MapStage):
    kinds: tuple[PromptKind, ...] = ("point", "box", "scribble", "mask")
    pen: Pen = Pen()
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
            xy, marked = self.pen.draw(kind, mask, rng)
            prompts.append(VisualPrompt(segment.segment_id, kind, xy, Rle.of(marked), text))
        return prompts


def _fit(segment: Segment) -> bool:
    """Whether one can point at it."""
    return not segment.is_crowd and segment.rle.area > 0
