"""What a machine is measured by: a disk whose fast cache runs out, on a clock of its own; real disks, teachers and pictures."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.artifact import Artifact
from schemas.codecs import layout_bytes
from schemas.errors import BrokenArtifact, ConfigError, DataError
from schemas.storage import Folder
from schemas.tables import SEGMENTS
from stages.base import Resources
from stages.endurance import Pace, pace, storage_of, written
from stages.features import FeaturesStage
from stages.forecast import PLAN, Range, StepForecast, compared, read_plan, write_plan
from stages.probe import column_pace, in_new_processes, look_at, segments_pace
from stages.segments import SegmentsStage
from teachers.config import Mask2FormerConfig, Sam2Config

MIB = 1 << 20


class Device:
    """A disk that takes `cache` bytes at `fast` bytes a second and all others at `slow`, each write give or take a tenth."""

    def __init__(self, cache: int, fast: float, slow: float, rng: np.random.Generator):
        self.cache, self.fast, self.slow, self.rng = cache, fast, slow, rng
        self.now, self.taken = 0.0, 0

    def write(self, data: bytes) -> None:
        quick = max(0, min(len(data), self.cache - self.taken))
        self.taken += len(data)
        self.now += (quick / self.fast + (len(data) - quick) / self.slow) * self.rng.uniform(0.9, 1.1)

    def clock(self) -> float:
        return self.now

    def truth(self, count: int, full: bool) -> float:
        """Seconds that `count` bytes really take, on the disk as it is new, or with its cache full of what came before."""
        quick = 0 if full else min(count, self.cache)
        return quick / self.fast + (count - quick) / self.slow


def probed(device: Device, most: int, piece: int = 4 * MIB) -> Pace:
    return pace(written(device, bytes(piece), most, device.clock), piece)


@pytest.mark.parametrize("full", [False, True], ids=["empty cache", "full cache"])
@pytest.mark.parametrize("fall", [2.5, 4.5, 20])
@pytest.mark.parametrize("cache_mib", [33, 130, 300])
def test_the_plan_for_a_disk_with_a_cliff_holds_the_truth(cache_mib, fall, full, rng):
    device = Device(cache_mib * MIB, 430e6, 430e6 / fall, rng)
    found = probed(device, 512 * MIB)
    assert len(found.regimes) == 2
    assert abs(found.regimes[0].bytes - device.cache) <= 2 * 4 * MIB
    for count in (10**9, 298 * 10**9):
        foretold = found.seconds(Range.exactly(count))
        assert device.truth(count, full) in foretold
        assert foretold.high < 1.3 * foretold.low + device.cache / device.slow
        first_seconds_only = Range.exactly(count).times(found.regimes[0].seconds_a_byte)
        assert device.truth(count, full) not in first_seconds_only


def test_one_writes_on_until_the_fall_has_held_and_no_further(rng):
    device = Device(40 * MIB, 400e6, 50e6, rng)
    probed(device, 4096 * MIB)
    assert 40 * MIB < device.taken < 200 * MIB


def test_a_disk_that_falls_twice_is_planned_by_the_last_rate(rng):
    seconds = [1 * MIB / rate * rng.uniform(0.9, 1.1) for rate in [900e6] * 20 + [300e6] * 20 + [60e6] * 24]
    found = pace(seconds, MIB)
    assert [regime.bytes // MIB for regime in found.regimes] == [20, 20, 24]
    assert 1 / 60e6 in found.sustained.seconds_a_byte


@pytest.mark.parametrize(
    "rates",
    [
        [100e6] * 64,
        [100e6] * 30 + [20e6] * 3 + [100e6] * 31,
        [100e6] * 30 + [60e6] * 34,
        [100e6] * 3,
        [20e6] * 30 + [90e6] * 34,
    ],
    ids=["even", "a hiccup", "less than a half", "few", "faster"],
)
def test_no_fall_is_seen_where_there_is_none(rates):
    assert len(pace([MIB / rate for rate in rates], MIB).regimes) == 1


def test_a_real_store_is_measured_and_left_as_it_was(store: Folder):
    store.write("there.txt", b"before")
    found = storage_of(store.child("a/b"), 16 * MIB)
    assert store.tree() == {"there.txt": 6}
    assert not store.exists("a")
    for each in (found.write, found.read):
        assert all(regime.bytes > 0 for regime in each.regimes)
        assert each.seconds(Range.exactly(1e9)).low > 0


def test_too_little_to_measure_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="too little room"):
        storage_of(Folder(str(tmp_path)), MIB)


def file(rng: np.random.Generator, width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_pictures_that_cannot_be_decoded_are_left_to_the_run(rng):
    good = [file(rng, 40, 30), file(rng, 20, 50)]
    rows, found = look_at([lambda: good[0], lambda: b"rubbish", lambda: good[1]])
    assert [(row["width"], row["height"]) for row in rows] == [(40, 30), (20, 50)]
    assert 0 < found.decode.likely <= found.look.likely
    with pytest.raises(DataError, match="none of the pictures"):
        look_at([lambda: b"rubbish"])


@pytest.mark.parametrize("codec", ["bf16", "pca4-int8", "points9", "bf16-zstd"])
def test_a_teacher_is_measured_on_the_pictures_by_its_own_stage(codec, rng):
    rows, _ = look_at([lambda data=file(rng, 40, 30): data for _ in range(9)])
    stage = FeaturesStage(name="sam2", teacher=Sam2Config(), grid=(8, 6), codec=codec)
    found = column_pace(stage, Resources(), rows)
    assert found.seconds.keys() == {"extract", "publish"}
    assert found.seconds["extract"].high > found.alone["forward"].low > 0
    layout = layout_bytes(stage.spec.layout(8, 6))
    assert all(size == layout or stage.spec.is_squeezed for size in found.row_bytes)


def test_the_bytes_of_a_shard_are_foretold(rng):
    rows, _ = look_at([lambda data=file(rng, 40, 30): data for _ in range(3)])
    stage = FeaturesStage(name="sam2", teacher=Sam2Config(), grid=(8, 6))
    found, size = column_pace(stage, Resources(), rows), 32 * 8 * 6 * 2
    row = {"height": 8, "width": 6, "size": size, "crc": 0, "feature": bytes(size)}
    made = Artifact(Folder("memory://probe-test"), {}, stage.table(), 1)
    part = made.write(0, stage.table().rows([{"image_key": f"{number:032x}"} | row for number in range(50)]))
    made.folder.remove()
    assert part.bytes == pytest.approx(50 * (size + found.overhead.a_row) + found.overhead.a_shard, rel=0.02)


def test_a_segmenter_is_measured_by_its_own_stage(rng):
    rows, _ = look_at([lambda data=file(rng, 40, 30): data for _ in range(3)])
    found = segments_pace(SegmentsStage(teacher=Mask2FormerConfig()), Resources(), rows)
    assert found.seconds["propose"].likely > 0
    assert found.overhead.a_shard > 0


@pytest.mark.slow
def test_a_new_process_tells_the_memory_of_its_teacher_alone(rng):
    rows, _ = look_at([lambda data=file(rng, 40, 30): data for _ in range(2)])
    ballast = np.ones(1 << 27)  # 1 GiB of this process, not of the other
    stage = FeaturesStage(name="sam2", teacher=Sam2Config(), grid=(8, 6))
    start = time.perf_counter()
    found = in_new_processes(column_pace, stage, Resources(), rows, together=2)
    assert 0 < found.ready < time.perf_counter() - start
    assert 100 * MIB < found.memory < ballast.nbytes
    assert found.device_memory == 0


def sealed(workspace: Folder, name: str, rows: int) -> Artifact:
    made = Artifact(workspace.child(name), {"rows": rows}, SEGMENTS, 1, name)
    made.write(0, SEGMENTS.rows([{"image_key": str(number), "segments": []} for number in range(rows)]))
    made.seal("2026-01-01T00:00:00+00:00", "2026-01-01T00:01:30+00:00", {}, code="", packages={})
    return made


def test_after_the_run_what_was_foretold_stands_beside_what_came(workspace):
    assert read_plan(workspace) == {}
    steps = [
        StepForecast("one", Range.exactly(5), Range(1, 2, 3), Range(60, 80, 100), Range.exactly(1)).as_json(),
        StepForecast("two", Range.exactly(5)).as_json(),
    ]
    write_plan(workspace, {"steps": steps})
    made = {"one": sealed(workspace, "one", 5), "three": sealed(workspace, "three", 1)}
    found = compared(read_plan(workspace), made)
    assert [(each.what, each.actual, each.held) for each in found] == [
        ("rows", 5, True),
        ("bytes", made["one"].folder.size("shard-00000.parquet"), False),
        ("seconds", 90.0, True),
    ]
    write_plan(workspace, {"steps": [StepForecast("two", Range.exactly(6)).as_json()]})
    assert {name: each.rows for name, each in read_plan(workspace).items()} == {
        "one": Range.exactly(5),
        "two": Range.exactly(6),
    }
    workspace.write(PLAN, b"{")
    with pytest.raises(BrokenArtifact, match="plan cannot be read"):
        read_plan(workspace)


def test_ranges_are_kept_apart_by_arithmetic():
    assert Range(1, 2, 3) + Range(1, 1, 1) == Range(2, 3, 4)
    assert Range(1, 2, 4).over(Range(1, 2, 4)) == Range(0.25, 1, 4)
    assert Range.exactly(1).over(Range(-1, 0, 1)) == Range(1, float("inf"), float("inf"))
    assert Range.mean_of([2.0, 2.0]) == Range(1.8, 2.0, 2.2)
    assert Range.mean_of([1.0, 3.0]).high > 3.0
