"""What is made under faults: a pool of little pictures, a cheap stage over it, and what a driver does to make its artifact."""

import io
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from flows.states import begin, refuse_stale, state_of
from schemas.artifact import Artifact
from schemas.pictures import decode, image_key
from schemas.regions import Rle, Segment
from schemas.storage import Folder
from schemas.tables import IMAGES, SEGMENTS, Table
from stages.base import Inputs, MapStage, Progress, Resources, ShardFunction, Tables
from stages.executor import Work, run_map

PICTURES_A_SHARD, SIDE = 6, 40


class Bright(MapStage):
    """IMAGES -> SEGMENTS: the bright part of every picture."""

    threshold: int = 128
    format: Literal["parquet", "arrow"] = "parquet"

    def table(self) -> Table:
        return replace(SEGMENTS, format=self.format)

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        return self.segment

    def segment(self, inputs: Tables) -> pa.Table:
        rows = zip(*(inputs["images"].column(name).to_pylist() for name in ("image_key", "bytes")), strict=True)
        return self.table().rows([{"image_key": key, "segments": [self._bright(data)]} for key, data in rows])

    def _bright(self, data: bytes) -> Segment:
        mask_HW = decode(data).mean(axis=2) > self.threshold
        return Segment(0, "bright", True, False, 1.0, "test", Rle.of(mask_HW), "the bright part")


def pool(folder: Folder, shards: int, rng: np.random.Generator) -> Artifact:
    """A complete IMAGES artifact of `shards` shards."""
    images = Artifact(folder, {"stage": "Pool", "shards": shards}, IMAGES, shards, "images")
    for number in range(shards):
        images.write(number, IMAGES.rows([_row(rng) for _ in range(PICTURES_A_SHARD)]))
    images.seal("then", "now", {}, code="c", packages={})
    return images


def _row(rng: np.random.Generator) -> dict[str, object]:
    pixels_HWC, file = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, "PNG")
    fields = {"width": SIDE, "height": SIDE, "format": "PNG", "sha256": "0" * 64, "aliases": []}
    return {"image_key": image_key(pixels_HWC), "bytes": file.getvalue(), **fields}


def warm() -> None:
    """Let what a stage's first rows import be imported."""
    Bright().segment({"images": IMAGES.rows([_row(np.random.default_rng(0))])})


def work(images: Artifact, output: Artifact, resources: Resources) -> Work:
    return Work(_stage(output), {"images": images}, {}, output, resources)


def _stage(output: Artifact) -> Bright:
    return Bright(**output.identity["config"])


def output(folder: Folder, images: Artifact, stage: Bright, kind: type[Artifact] = Artifact) -> Artifact:
    """The artifact of segments that shall lie in `folder`."""
    identity = {"stage": "Bright", "config": stage.identity(), "inputs": {"images": images.fingerprint}}
    return kind(folder, identity, stage.table(), images.shards, "segments")


def drive(job: Work, progress: Progress) -> None:
    """What a driver does for a step: look, make what is missing, seal."""
    before = state_of(job.output, job.inputs)
    if before.kind == "done":
        return
    refuse_stale(job.output, before, "segments")
    started = _now()
    if type(job.output) is Artifact:  # the weak writer notes nothing
        begin(job.output, job.inputs)
    outcome = run_map(job, progress)
    job.output.seal(started, _now(), job.inputs, code="c", packages={}, summary={}, failures=outcome.failures)


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat()
