"""A picture that the store has damaged may still be decoded: whoever makes something of it says so, and makes nothing."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from schemas.artifact import Artifact, verify
from schemas.errors import BrokenArtifact
from schemas.pictures import decode, sound_bytes
from schemas.storage import Folder
from schemas.tables import ANNOTATIONS, IMAGES
from stages.base import MapStage, Resources
from stages.basis import some_pictures
from stages.executor import Work, run_map
from stages.features import FeaturesStage
from stages.predict import pictures_of
from stages.report.reading import Spot, picture
from stages.segments import SegmentsStage
from stages.teach import some_scenes
from stages.together import Together
from student.data.pictures import PictureReader
from teachers.mask2former.config import Mask2FormerConfig
from teachers.sam2.config import Sam2Config
from tests.stages.scenes import scenes, write

ROW = 2
RESOURCES = Resources(executor="local", max_error_rate=1.0)


@dataclass(frozen=True)
class Pool:
    """Scenes as bitmaps, whose every byte is a colour; and one of these bytes in the store, at `flips`, that may be flipped."""

    root: Folder
    images: Artifact
    annotations: Artifact
    key: str
    flips: int

    @property
    def inputs(self) -> dict[str, Artifact]:
        return {"images": self.images, "annotations": self.annotations}

    def flip(self) -> None:
        name = self.images.shard_name(0)
        data = bytearray(self.images.folder.read(name))
        data[self.flips] ^= 64
        self.images.folder.write(name, bytes(data))

    def work(self, stage: MapStage, name: str) -> Work:
        table = stage.table()
        assert table is not None
        output = Artifact(self.root.child(name), {"stage": name}, table, 1, name)
        roles = ("images", "annotations") if isinstance(stage, SegmentsStage) else ("images",)
        return Work(stage, {role: self.inputs[role] for role in roles}, {}, output, RESOURCES)


def as_bitmap(image: dict[str, Any]) -> dict[str, Any]:
    sink = io.BytesIO()
    Image.fromarray(decode(image["bytes"])).save(sink, "BMP")
    data = sink.getvalue()
    return image | {"format": "BMP", "bytes": data, "sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    folder, pairs = Folder(str(tmp_path)), [(as_bitmap(image), said) for image, said in scenes(3, 1)]
    images = Artifact(folder.child("images"), {"of": "images"}, IMAGES, 1, "images")
    annotations = Artifact(folder.child("annotations"), {"of": "annotations"}, ANNOTATIONS, 1, "annotations")
    write(images, annotations, pairs)
    damaged = pairs[ROW][0]
    stored = images.folder.read(images.shard_name(0))
    return Pool(folder, images, annotations, damaged["image_key"], stored.index(damaged["bytes"]) + len(damaged["bytes"]) // 2)


SAM2 = FeaturesStage(name="sam2", teacher=Sam2Config(), grid=(4, 4))
OTHER = FeaturesStage(name="other", teacher=Sam2Config(), grid=(8, 8), codec="int8")
SEGMENTER = SegmentsStage(teacher=Mask2FormerConfig())


def ignored(done: int, total: int, unit: str, note: str = "") -> None:
    pass


READERS: dict[str, Callable[[Pool], object]] = {
    "features": lambda pool: run_map(pool.work(SAM2, "a"), ignored),
    "one pass": lambda pool: run_map(Together((pool.work(SAM2, "a"), pool.work(OTHER, "b"))), ignored),
    "segments": lambda pool: run_map(pool.work(SEGMENTER, "a"), ignored),
    "basis": lambda pool: some_pictures(pool.images, 4),
    "teach": lambda pool: some_scenes(pool.inputs, 4, 1),
    "answers": lambda pool: pictures_of(pool.images.read(0), {pool.key}),
    "report": lambda pool: picture(pool.images, Spot(0, pool.key)),
    "training": lambda pool: PictureReader(pool.images, cache_bytes=0).read(0, ROW),
}


@pytest.mark.parametrize("name", READERS)
def test_whoever_decodes_it_names_it_and_stops(name: str, pool: Pool):
    READERS[name](pool)
    for made in ("a", "b"):
        pool.root.child(made).remove()
    pool.flip()
    with pytest.raises(BrokenArtifact, match=rf"picture {pool.key}: its bytes are not those .*sailyard verify"):
        READERS[name](pool)


@pytest.mark.parametrize("stage", [SAM2, SEGMENTER], ids=["features", "segments"])
def test_nothing_is_stored_of_it_and_what_is_made_later_is_as_if_nothing_had_been(stage: MapStage, pool: Pool):
    unbroken, mended = pool.work(stage, "unbroken"), pool.work(stage, "mended")
    run_map(unbroken, ignored)
    pool.flip()
    (fault,) = verify(pool.images.folder)
    assert "shard-00000.parquet" in fault, "what the remedy says"
    with pytest.raises(BrokenArtifact):
        run_map(mended, ignored)
    assert mended.output.found() == {}
    pool.flip()
    run_map(mended, ignored)
    shards = [work.output.read(0) for work in (unbroken, mended)]
    assert shards[0].equals(shards[1]) and shards[0].column("error").null_count == len(shards[0])


def test_a_row_that_says_nothing_of_its_bytes_is_read_as_it_is():
    assert sound_bytes({"image_key": "k", "bytes": b"any", "sha256": ""}) == b"any"
