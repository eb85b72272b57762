"""Columns that are made in one pass are those that are made alone; a picture is decoded once, and soon forgotten."""

import weakref
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas.artifact import Artifact
from schemas.features import FeatureSpec
from schemas.storage import Folder
from schemas.tables import IMAGES
from stages.base import Resources
from stages.executor import Work, run_map
from stages.features import FeaturesStage, Lane, extract
from stages.together import Together
from tests.stages.test_features import encoded, images_of, stage_of
from tests.teachers.conftest import picture

LOCAL = Resources(executor="local")


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    rng = np.random.default_rng(1)
    return [encoded(picture(rng, *(96, 128)[:: 1 - 2 * (number % 2)])) for number in range(5)]


@pytest.fixture
def images(files, tmp_path) -> Artifact:
    artifact = Artifact(Folder(str(tmp_path / "images")), {"stage": "Pool"}, IMAGES, 2)
    artifact.write(0, images_of(files[:3]))
    was_whole = pa.array([files[3][:200], files[4]], pa.large_binary())
    place = IMAGES.schema.get_field_index("bytes")
    artifact.write(1, images_of(files[3:]).set_column(place, IMAGES.schema.field(place), was_whole))
    return artifact


def work_of(stage: FeaturesStage, images: Artifact, folder: Folder) -> Work:
    output = Artifact(folder.child(stage.name), {"stage": "Features", "name": stage.name}, stage.table(), images.shards)
    return Work(stage, {"images": images}, {}, output, LOCAL.model_copy(update={"max_error_rate": 1.0}))


def quiet(done: int, total: int, unit: str, note: str = "") -> None:
    pass


def test_one_pass_makes_the_bytes_that_each_column_alone_has(images, tmp_path):
    stages = [stage_of("sam2"), stage_of("mask2former", codec="int8")]
    apart = [work_of(stage, images, Folder(str(tmp_path / "apart"))) for stage in stages]
    joint = [work_of(stage, images, Folder(str(tmp_path / "joint"))) for stage in stages]
    for work in apart:
        run_map(work, quiet)
    outcome = run_map(Together(tuple(joint)), quiet)
    assert len(outcome.failures) == 1  # the first one's own; of the other's its own step will tell
    for alone, beside in zip(apart, joint, strict=True):
        assert [part.failed for part in beside.output.found().values()] == [0, 1]
        for number in range(images.shards):
            name = alone.output.shard_name(number)
            assert beside.output.folder.read(name) == alone.output.folder.read(name)


class Watcher:
    """A teacher that keeps nothing of a picture but which array it was, and how many it has seen that are still there."""

    def __init__(self, seen: list[Any], bears: int = 256):
        self.seen, self.bears, self.alive = seen, bears, 0

    def prepare(self, image: np.ndarray) -> np.ndarray:
        self.seen.append(weakref.ref(image))
        self.alive = max(self.alive, len({id(ref()) for ref in self.seen} - {id(None)}))
        return image.mean(axis=(0, 1), dtype=np.float32)

    def show(self, prepared, grids):
        if any(mean_C.max() > self.bears for mean_C in prepared):
            raise RuntimeError("too bright")
        return [lambda mean_C=mean_C: np.full((1, 2, 2), mean_C[0], np.float32) for mean_C in prepared]


def lane(name: str, teacher: Watcher) -> Lane:
    return Lane(teacher, FeatureSpec(teacher=name, layer="mean", channels=1, grid="native"))  # type: ignore[arg-type]


def test_a_picture_is_decoded_once_and_forgotten_when_all_have_seen_it():
    levels = range(0, 240, 6)
    pictures = images_of([encoded(np.full((16, 16, 3), level, np.uint8)) for level in levels])
    first, second = Watcher(seen := []), Watcher(seen)
    columns = extract([lane("first", first), lane("second", second)], pictures, batch=2, threads=1)
    assert [table.column("error").null_count for table in columns] == [len(levels)] * 2
    assert len(seen) == 2 * len(levels)
    assert [one is other for one, other in zip(seen[::2], seen[1::2], strict=True)] == [True] * len(levels)
    assert max(first.alive, second.alive) <= 2


def test_what_fails_in_one_column_fails_in_no_other():
    pictures = images_of([encoded(np.full((16, 16, 3), level, np.uint8)) for level in (10, 200, 30)])
    columns = extract([lane("first", Watcher([], bears=100)), lane("second", Watcher([]))], pictures, batch=4, threads=2)
    first, second = (table.to_pylist() for table in columns)
    assert [bool(row["error"]) for row in first] == [False, True, False] and "too bright" in first[1]["error"]
    assert [row["error"] for row in second] == [None] * 3
    spec = lane("second", Watcher([])).spec
    assert [spec.decode(row["feature"], 2, 2)[0, 0, 0] for row in second] == pytest.approx([10, 200, 30], abs=2)
