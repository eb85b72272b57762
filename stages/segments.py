"""IMAGES and ANNOTATIONS -> SEGMENTS: the regions of each picture, by ground truth or by a teacher, in one form."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from schemas import tables
from schemas.pictures import decode, sound_bytes
from schemas.regions import Rle, Segment
from schemas.tables import SEGMENTS, Table, revive
from stages.base import Inputs, MapStage, Resources, ShardFunction, Tables
from stages.deadline import heartbeat
from stages.isolate import isolate, row_error_of
from teachers.base import NetworkConfig
from teachers.config import TeacherConfig


class SegmentsStage(MapStage):
    """Without a teacher, the annotated objects themselves."""

    teacher: TeacherConfig | None = None
    min_area: int = 16

    def table(self) -> Table:
        return SEGMENTS

    def opens(self) -> NetworkConfig | None:
        return self.teacher

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        find = _annotated if self.teacher is None else self._propose(resources)
        return lambda inputs: find_segments(find, inputs, self.min_area)

    def _propose(self, resources: Resources) -> Callable[..., list[Segment]]:
        from teachers.build import build_segmenter

        assert self.teacher is not None
        segmenter = build_segmenter(self.teacher, device=resources.device, threads=resources.threads)
        source = self.teacher.kind

        def propose(image: dict[str, Any], annotation: dict[str, Any]) -> list[Segment]:
            proposals = segmenter.segments(decode(sound_bytes(image)))
            return [
                Segment(number, found.category, found.is_thing, False, float(found.score), source, Rle.of(found.mask_HW))
                for number, found in enumerate(proposals, start=1)
            ]

        return propose


def _annotated(image: dict[str, Any], annotation: dict[str, Any]) -> list[Segment]:
    """The annotated objects, with what is said about each."""
    captions = {caption["segment_id"]: caption["text"] for caption in annotation["captions"]}
    return [
        replace(found, caption=captions.get(found.segment_id, "")) for found in revive(list[Segment], annotation["objects"])
    ]


def find_segments(find: Callable[..., list[Segment]], inputs: Tables, min_area: int) -> pa.Table:
    """One row a picture: its segments of `min_area` pixels and more, or the error that kept them from being found."""
    rows, small = [], 0
    for image, annotation in zip(inputs["images"].to_pylist(), inputs["annotations"].to_pylist(), strict=True):
        key, error = image["image_key"], image["error"]
        if error:
            rows.append({"image_key": key, "segments": [], "error": error})
            continue
        (found,) = isolate([(image, annotation)], lambda items: [find(*items[0])])
        heartbeat()
        if isinstance(found, BaseException):
            rows.append({"image_key": key, "segments": [], "error": row_error_of(found)})
        else:
            kept = [segment for segment in found if segment.rle.area >= min_area]
            small += len(found) - len(kept)
            rows.append({"image_key": key, "segments": kept})
    return tables.without(tables.SEGMENTS.rows(rows), {f"segments under {min_area} pixels": small})
