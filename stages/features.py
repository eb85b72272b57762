"""IMAGES -> features(spec): what a frozen teacher sees in each picture, made once."""

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from schemas import tables
from schemas.codecs import Basis
from schemas.features import CodecName, FeatureSpec
from schemas.grids import Grid
from schemas.pictures import decode, sound_bytes
from schemas.tables import Table, feature_row
from stages.base import Inputs, MapStage, Resources, ShardFunction
from stages.isolate import row_error_of
from stages.pipeline import Pipeline
from teachers.base import NetworkConfig, Teacher
from teachers.config import TeacherConfig

Row = dict[str, Any]
_log = logging.getLogger(__name__)


class FeaturesStage(MapStage):
    """`name` is the column's name in the config: the student knows it by that, and by nothing else. The codecs of principal
    components need their `basis` as a whole."""

    name: str
    teacher: TeacherConfig
    grid: Grid
    codec: CodecName = "bf16"
    seed: int = 0

    @property
    def spec(self) -> FeatureSpec:
        return FeatureSpec(
            teacher=self.name,
            layer=self.teacher.layer,
            channels=self.teacher.feature_channels,
            grid=self.grid,
            codec=self.codec,
            seed=self.seed,
        )

    def table(self) -> Table:
        return tables.features(self.spec)

    def opens(self) -> NetworkConfig:
        return self.teacher

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        lane = self.lane(resources, whole)
        return lambda inputs: extract([lane], inputs["images"], **at_once(resources))[0]

    def lane(self, resources: Resources, whole: Inputs) -> "Lane":
        """What is heavy, loaded. On the CPU the network has the threads; a device leaves them to what is around it."""
        from stages.basis import read_basis
        from stages.passport import require_same
        from teachers.build import build_teacher

        teacher = build_teacher(self.teacher, resources.device, resources.threads if resources.device == "cpu" else 1)
        if "passport" in whole:
            for fact in require_same(whole["passport"], self.teacher, resources, teacher):
                _log.warning("%s: %s, and its features have not moved", self.name, fact)
        return Lane(teacher, self.spec, read_basis(whole["basis"]) if self.spec.components else None)


@dataclass(frozen=True, eq=False)
class Lane:
    """What pictures go through on their way to one column: the teacher that is shown them, and how its maps are stored."""

    teacher: Teacher
    spec: FeatureSpec
    basis: Basis | None = None


def at_once(resources: Resources) -> dict[str, int]:
    """How many pictures are shown together, and the threads around the network. On the CPU that is one and one more: the bytes
    may not follow from the batch."""
    on_cpu = resources.device == "cpu"
    return {"batch": 1 if on_cpu else resources.batch, "threads": 1 if on_cpu else resources.threads}


def extract(lanes: Sequence[Lane], images: pa.Table, *, batch: int, threads: int) -> list[pa.Table]:
    """The table of each lane, from IMAGES whose bytes are still Arrow's: one row a picture, its stored feature, or null and the
    error that kept it from being made. A picture is decoded once for all lanes, and one that a lane cannot bear fails in no
    other. Raises `BrokenArtifact` for one that the store has damaged."""
    rows = images.select(["image_key", "width", "height", "sha256", "error"]).to_pylist()
    good = [_Picture(row, data, len(lanes)) for row, data in zip(rows, images.column("bytes"), strict=True) if not row["error"]]
    seen = _in_turns(lanes, good, max(batch, threads))
    made = Pipeline(_load, _shape, _show, _keep, batch, threads)(seen)
    return [_column(lane, rows, [each for (own, _), each in zip(seen, made, strict=True) if own is lane]) for lane in lanes]


def _in_turns(lanes: Sequence[Lane], pictures: Sequence["_Picture"], count: int) -> list["_Seen"]:
    """So many pictures for one lane, then the same for the next: by then they are decoded, and no thread waits for another."""
    blocks = [pictures[at : at + count] for at in range(0, len(pictures), count)]
    return [(lane, picture) for block in blocks for lane in lanes for picture in block]


@dataclass(eq=False)
class _Picture:
    """A row of IMAGES, decoded for the first of its `viewers` and forgotten with the last. Threads may come at once."""

    row: Row
    data: pa.LargeBinaryScalar
    viewers: int
    lock: Lock = field(default_factory=Lock)
    pixels_HWC: np.ndarray | None = None

    def view(self) -> np.ndarray:
        with self.lock:
            self.viewers -= 1
            pixels_HWC = self._decoded() if self.pixels_HWC is None else self.pixels_HWC
            self.pixels_HWC = pixels_HWC if self.viewers > 0 else None
            return pixels_HWC

    def _decoded(self) -> np.ndarray:
        return decode(sound_bytes({**self.row, "bytes": self.data.as_py()}))


_Seen = tuple[Lane, _Picture]
_Loaded = tuple[Lane, Any, tuple[int, int] | None]


def _load(seen: _Seen) -> _Loaded:
    lane, picture = seen
    return lane, lane.teacher.prepare(picture.view()), lane.spec.grid_of(picture.row["width"], picture.row["height"])


def _shape(loaded: _Loaded) -> Hashable:
    lane, prepared, _ = loaded
    return lane, prepared.shape


def _show(loaded: Sequence[_Loaded]) -> list[Callable[[], np.ndarray]]:
    lane = loaded[0][0]
    return lane.teacher.show([prepared for _, prepared, _ in loaded], [grid for _, _, grid in loaded])


def _keep(seen: _Seen, map_Chw: np.ndarray) -> Row:
    lane, picture = seen
    return feature_row(lane.spec, picture.row["image_key"], map_Chw, lane.basis)


def _column(lane: Lane, rows: Sequence[Row], made: Sequence[Row | BaseException]) -> pa.Table:
    """Of rows of IMAGES and what became of those that are pictures."""
    each = iter(made)
    return _table(tables.features(lane.spec), [row if row["error"] else _row(row["image_key"], next(each)) for row in rows])


def _row(key: str, made: Row | BaseException) -> Row:
    return {"image_key": key, "error": row_error_of(made)} if isinstance(made, BaseException) else made


def _table(table: Table, rows: Sequence[Row]) -> pa.Table:
    """The rows, whose features are not copied: a shard has gigabytes of them."""
    names = table.schema.names
    plain = table.rows([{name: row.get(name) for name in names if name != "feature"} for row in rows])
    place = table.schema.get_field_index("feature")
    features = pa.chunked_array([_shared(row.get("feature")) for row in rows], pa.large_binary())
    return plain.set_column(place, table.schema.field(place), features)


def _shared(stored: bytes | None) -> pa.Array:
    """An array of this one value, in the memory that it lies in."""
    if stored is None:
        return pa.nulls(1, pa.large_binary())
    ends = pa.py_buffer(np.array([0, len(stored)], np.int64))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(stored)])
