"""Columns that are made in one pass are those that are made alone; a picture is decoded once, and soon forgotten."""

import weakref
from collections.abc import Iterable

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


class Alive:
    """How many of the pictures that came were there at a time, at most."""

    def __init__(self) -> None:
        self.references: list[weakref.ref[np.ndarray]] = []
        self.most = 0

    def append(self, image: np.ndarray) -> None:
        self.references.append(weakref.ref(image))
        self.most = max(self.most, len({id(ref()) for ref in self.references} - {id(None)}))


class Grey:
    """A teacher whose map is the mean of the picture, that tells `seen` of each and cannot bear one that is too bright."""

    def __init__(self, seen: Alive | list[np.ndarray], bears: int = 256):
        self.seen, self.bears = seen, bears

    def prepare(self, image: np.ndarray) -> np.ndarray:
        self.seen.append(image)
        return image.mean(axis=(0, 1), dtype=np.float32)

    def show(self, prepared, grids):
        if any(mean_C.max() > self.bears for mean_C in prepared):
            raise RuntimeError("too bright")
        return [lambda mean_C=mean_C: np.full((1, 2, 2), mean_C[0], np.float32) for mean_C in prepared]


def lanes(*teachers: Grey) -> list[Lane]:
    specs = [FeatureSpec(teacher=f"t{n}", layer="mean", channels=1, grid="native") for n in range(len(teachers))]
    return [Lane(teacher, spec) for teacher, spec in zip(teachers, specs, strict=True)]  # type: ignore[arg-type]


def pictures(levels: Iterable[int]) -> pa.Table:
    return images_of([encoded(np.full((16, 16, 3), level, np.uint8)) for level in levels])


LEVELS = range(0, 240, 6)


def test_a_picture_is_forgotten_when_all_have_seen_it():
    alive = Alive()
    columns = extract(lanes(Grey(alive), Grey(alive)), pictures(LEVELS), batch=2, threads=1)
    assert [table.column("error").null_count for table in columns] == [len(LEVELS)] * 2
    assert len(alive.references) == 2 * len(LEVELS)
    assert alive.most <= 4  # two blocks of two


@pytest.mark.parametrize("threads", [1, 8])
def test_a_picture_is_decoded_once_whoever_asks_first(threads: int):
    """Whether one array comes twice, or two that are alike: all are kept, so no two lie at one place."""
    seen: list[np.ndarray] = []
    extract(lanes(Grey(seen), Grey(seen)), pictures(LEVELS), batch=1, threads=threads)
    assert (len(seen), len({id(image) for image in seen})) == (2 * len(LEVELS), len(LEVELS))


def test_a_picture_that_one_column_cannot_bear_fails_in_no_other():
    columns = extract(lanes(Grey([], bears=100), Grey([])), pictures((10, 200, 30)), batch=4, threads=2)
    first, second = (table.to_pylist() for table in columns)
    assert [bool(row["error"]) for row in first] == [False, True, False] and "too bright" in first[1]["error"]
    assert [row["error"] for row in second] == [None] * 3
    (spec,) = {lane.spec for lane in lanes(Grey([]))}
    assert [spec.decode(row["feature"], 2, 2)[0, 0, 0] for row in second] == pytest.approx([10, 200, 30], abs=2)
