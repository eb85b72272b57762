"""Features as they are stored: the bytes of a loop that shows one picture after the other, whatever runs beside it."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from schemas.artifact import Artifact
from schemas.features import FeatureSpec
from schemas.grids import PatchGrid
from schemas.pictures import decode, image_key
from schemas.row_errors import RowError
from schemas.storage import Folder
from schemas.tables import IMAGES, Table, feature_row
from stages.base import Resources
from stages.features import FeaturesStage, Lane, extract
from teachers.build import build_teacher
from teachers.mask2former.config import Mask2FormerConfig
from teachers.sam2.config import Sam2Config
from tests.teachers.conftest import picture

TEACHERS = {"sam2": Sam2Config(), "mask2former": Mask2FormerConfig()}
SIZES = [(96, 128), (128, 96), (64, 64)]
STUDENT = PatchGrid(patch=16, max_side=128, cells=2)


def encoded(image: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def images_of(files: list[bytes]) -> pa.Table:
    """IMAGES of these files; the one that is no picture has lost its bytes since it was pooled."""
    rows = []
    for number, data in enumerate(files):
        pixels = decode(data) if data.startswith(b"\xff\xd8") else np.full((8, 8, 3), number, np.uint8)
        height, width, _ = pixels.shape
        row = {"image_key": image_key(pixels), "width": width, "height": height, "format": "JPEG", "bytes": data}
        rows.append(row | {"sha256": "", "aliases": [f"{number}.jpg"]})
    return IMAGES.rows(rows)


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    rng = np.random.default_rng(0)
    return [encoded(picture(rng, *SIZES[number % 3])) for number in range(7)]


def stage_of(name: str, **more) -> FeaturesStage:
    return FeaturesStage(name=name, teacher=TEACHERS[name], **{"grid": STUDENT, **more})


def made_by(stage: FeaturesStage, images: pa.Table, batch: int) -> pa.Table:
    return stage.open(Resources(executor="local", batch=batch), {})({"images": images})


def in_line(stage: FeaturesStage, images: pa.Table) -> pa.Table:
    teacher, rows = build_teacher(stage.teacher), []
    for row in images.to_pylist():
        (map_Chw,) = teacher.features([decode(row["bytes"])], [stage.spec.grid_of(row["width"], row["height"])])
        rows.append(feature_row(stage.spec, row["image_key"], map_Chw))
    return stage.table().rows(rows)


def shard_bytes(table: Table, rows: pa.Table, folder: Folder) -> bytes:
    artifact = Artifact(folder, {"stage": "Features"}, table, 1)
    artifact.write(0, rows)
    return folder.read(artifact.shard_name(0))


@pytest.mark.parametrize("name", TEACHERS)
def test_shards_have_the_bytes_of_a_plain_loop_at_any_batch(name, files, tmp_path):
    stage, images = stage_of(name), images_of(files)
    expected = shard_bytes(stage.table(), in_line(stage, images), Folder(str(tmp_path / "loop")))
    for batch in (1, 3, 16):
        made = made_by(stage, images, batch)
        assert made.schema == stage.table().schema
        assert shard_bytes(stage.table(), made, Folder(str(tmp_path / str(batch)))) == expected


@pytest.mark.parametrize("name", TEACHERS)
def test_batches_by_shape_give_the_same_rows_within_the_stored_precision(name, files):
    """As on a device, where pictures are shown together."""
    stage, images = stage_of(name), images_of(files)
    alone = in_line(stage, images).to_pylist()
    (made,) = extract([Lane(build_teacher(stage.teacher), stage.spec)], images, batch=3, threads=2)
    for one, other in zip(made.to_pylist(), alone, strict=True):
        assert one["image_key"] == other["image_key"]
        maps = [stage.spec.decode(row["feature"], row["height"], row["width"]) for row in (one, other)]
        np.testing.assert_allclose(*maps, atol=0.02, rtol=0.01)


def test_a_poisoned_picture_costs_its_row_alone(files):
    stage = stage_of("sam2", grid="native")
    expected = made_by(stage, images_of(files), 16).to_pylist()
    poisoned = [*files[:3], files[3][:200], *files[4:]]
    images = images_of(files).set_column(4, IMAGES.schema.field("bytes"), pa.array(poisoned, pa.large_binary()))
    made = made_by(stage, images, 16).to_pylist()
    assert made[:3] + made[4:] == expected[:3] + expected[4:]
    assert made[3]["image_key"] == expected[3]["image_key"]
    assert made[3]["feature"] is None and made[3]["height"] is None
    assert RowError.parse(made[3]["error"]).kind == "data"


def test_a_row_that_failed_before_keeps_its_error_and_is_not_looked_at(files):
    images = images_of(files).to_pylist()
    images[2] |= {"bytes": b"", "error": "data: DataError: the file is empty"}
    made = made_by(stage_of("sam2"), IMAGES.rows(images), 4).to_pylist()
    assert [row["error"] for row in made] == [None, None, "data: DataError: the file is empty", *[None] * 4]
    assert [row["image_key"] for row in made] == [row["image_key"] for row in images]


def test_a_shard_without_pictures_is_a_table_without_rows():
    made = made_by(stage_of("sam2"), images_of([]), 4)
    assert made.schema == stage_of("sam2").table().schema
    assert len(made) == 0


class Mean:
    """A teacher whose map is the mean of the picture, and that cannot bear a black picture, or gives NaN for a white one."""

    calls = 0

    def prepare(self, image: np.ndarray) -> np.ndarray:
        return image.mean(axis=(0, 1), dtype=np.float32)

    def show(self, prepared, grids):
        self.calls += 1
        if any(not mean_C.any() for mean_C in prepared):
            raise RuntimeError("black")
        maps = [np.full((1, 2, 2), np.nan if mean_C.min() > 250 else mean_C[0], np.float32) for mean_C in prepared]
        return [lambda map_Chw=map_Chw: map_Chw for map_Chw in maps]


@pytest.mark.parametrize(("level", "error"), [(0, "code: RuntimeError: black"), (255, "data: NonFinite: mean made")])
def test_what_the_network_makes_of_one_picture_is_no_fault_of_the_others(level, error):
    levels = [20, 40, 60, level, 80, 100, 120, 140]
    images = images_of([encoded(np.full((16, 16, 3), each, np.uint8)) for each in levels])
    spec, teacher = FeatureSpec(teacher="mean", layer="mean", channels=1, grid="native"), Mean()
    made = extract([Lane(teacher, spec)], images, batch=8, threads=2)[0].to_pylist()  # type: ignore[arg-type]
    assert [row["error"] is None for row in made] == [each != level for each in levels]
    assert made[3]["error"].startswith(error)
    assert made[3]["feature"] is None
    values = [spec.decode(row["feature"], 2, 2)[0, 0, 0] for row in made if row["feature"]]
    assert values == sorted(values)
    assert teacher.calls <= 1 + 4
