"""IMAGES -> features(spec): what a frozen teacher sees in each picture, made once."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from schemas import tables
from schemas.codecs import Basis
from schemas.features import CodecName, FeatureSpec
from schemas.grids import Grid
from schemas.pictures import decode
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
        """On the CPU the network has the threads, one more does what is around it, and pictures are shown one by one, for the
        bytes may not follow from the batch. A device leaves the threads to what is around it."""
        from stages.basis import read_basis
        from stages.passport import require_same
        from teachers.build import build_teacher

        on_cpu = resources.device == "cpu"
        teacher = build_teacher(self.teacher, resources.device, resources.threads if on_cpu else 1)
        if "passport" in whole:
            for fact in require_same(whole["passport"], self.teacher, resources, teacher):
                _log.warning("%s: %s, and its features have not moved", self.name, fact)
        basis = read_basis(whole["basis"]) if self.spec.components else None
        batch, threads = (1, 1) if on_cpu else (resources.batch, resources.threads)
        line = extraction(teacher, self.spec, basis, batch=batch, threads=threads)
        return lambda inputs: extract(line, inputs["images"], self.table())


def extraction(
    teacher: Teacher, spec: FeatureSpec, basis: Basis | None, *, batch: int, threads: int
) -> Pipeline[Row, Any, np.ndarray, Row]:
    """From rows of IMAGES, whose bytes are still Arrow's, to rows of `features(spec)`."""

    def load(row: Row) -> tuple[Any, Any]:
        return teacher.prepare(decode(row["bytes"].as_py())), spec.grid_of(row["width"], row["height"])

    def show(loaded: Sequence[tuple[Any, Any]]) -> list[Callable[[], np.ndarray]]:
        return teacher.show([prepared for prepared, _ in loaded], [grid for _, grid in loaded])

    def keep(row: Row, map_Chw: np.ndarray) -> Row:
        return feature_row(spec, row["image_key"], map_Chw, basis)

    return Pipeline(load, lambda loaded: loaded[0].shape, show, keep, batch, threads)


def extract(line: Pipeline[Row, Any, np.ndarray, Row], images: pa.Table, table: Table) -> pa.Table:
    """One row a picture: its stored feature, or null and the error that kept it from being made."""
    rows = images.select(["image_key", "width", "height", "error"]).to_pylist()
    good = [row | {"bytes": data} for row, data in zip(rows, images.column("bytes"), strict=True) if not row["error"]]
    made = iter(line(good))
    return _table(table, [row if row["error"] else _row(row["image_key"], next(made)) for row in rows])


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
