"""A small real column of features, and a stage that makes it, for tests of what happens to single rows."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from schemas import tables
from schemas.artifact import Artifact
from schemas.errors import DataError
from schemas.features import FeatureSpec
from schemas.storage import Folder
from schemas.tables import IMAGES, Table, feature_row
from stages.base import Inputs, JobStage, MapStage, Outcome, Progress, Resources, ShardFunction, Tables
from stages.isolate import isolate, row_error_of

SHARDS, ROWS = 4, 10
FAULTS = {"data": DataError, "code": ValueError, "infra": ConnectionError}
SPEC = FeatureSpec(teacher="tiny", layer="all", channels=8, grid=(2, 3))


def key(number: int, row: int) -> str:
    return hashlib.sha256(f"{number}/{row}".encode()).hexdigest()


class Pictures(JobStage):
    """Rows of IMAGES; the last one of shard 1 could not be decoded."""

    def table(self) -> Table:
        return IMAGES

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        for number in range(output.shards):
            output.write(number, IMAGES.rows([self._row(number, row) for row in range(ROWS)]))
        return Outcome()

    def _row(self, number: int, row: int) -> dict[str, Any]:
        error = {"error": "data: 1.jpg: cut short"} if (number, row) == (1, ROWS - 1) else {}
        plain = {"width": 4, "height": 4, "format": "PNG", "bytes": b"", "sha256": "", "aliases": [f"{number}-{row}.png"]}
        return {"image_key": key(number, row), **plain, **error}


class Grow(MapStage):
    """A map for each picture, drawn from its key. `trap` is a folder: a picture whose name stands there fails, by the class
    that is written in it. Each picture that is made is a line in `diary`."""

    trap: str
    channels: int = SPEC.channels

    def identity(self) -> dict[str, Any]:
        return {"channels": self.channels}

    def table(self) -> Table:
        return tables.features(SPEC)

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        return lambda inputs: self.grow(inputs, resources.batch)

    def grow(self, inputs: Tables, batch: int) -> pa.Table:
        rows = inputs["images"].select(["image_key", "aliases", "error"]).to_pylist()
        good = [row for row in rows if not row["error"]]
        made = {row["image_key"]: {"image_key": row["image_key"], "error": row["error"]} for row in rows}
        for start in range(0, len(good), batch):
            some = good[start : start + batch]
            for row, each in zip(some, isolate(some, self._make), strict=True):
                failed = {"image_key": row["image_key"], "error": row_error_of(each)} if isinstance(each, BaseException) else {}
                made[row["image_key"]] = failed or each  # type: ignore[assignment]
        return self.table().rows([made[row["image_key"]] for row in rows])

    def _make(self, rows: Any) -> list[dict[str, Any]]:
        for row in rows:
            trap = Path(self.trap) / row["aliases"][0]
            if trap.exists():
                raise {"data": DataError, "code": ValueError, "infra": ConnectionError}[trap.read_text()](
                    f"{trap.name} is poison"
                )
        with (Path(self.trap) / "diary").open("a") as diary:
            diary.writelines(f"{row['aliases'][0]}\n" for row in rows)
        return [feature_row(SPEC, row["image_key"], self._map(row["image_key"])) for row in rows]

    def _map(self, image_key: str) -> np.ndarray:
        random = np.random.default_rng(int(image_key[:8], 16))
        return random.standard_normal((SPEC.channels, *SPEC.grid)).astype(np.float32)  # type: ignore[misc]


def pictures(folder: Folder) -> Artifact:
    artifact = Artifact(folder, {"stage": "Pictures"}, IMAGES, SHARDS, "images")
    Pictures().run({}, artifact, Resources(), lambda done, total, unit, note="": None)
    artifact.seal("then", "now", {}, code="c", packages={})
    return artifact


def set_trap(trap: Path, name: str, kind: str = "data") -> None:
    trap.mkdir(exist_ok=True)
    (trap / name).write_text(kind)


def diary(trap: Path) -> list[str]:
    """The pictures made since last asked."""
    lines = (trap / "diary").read_text().split()
    (trap / "diary").write_text("")
    return lines


def flip(folder: Folder, name: str, at: int, bits: int = 0x40) -> None:
    data = bytearray(folder.read(name))
    data[at] ^= bits
    folder.write(name, bytes(data))


def spot(artifact: Artifact, number: int, row: int) -> int:
    """Where the bytes of a stored feature begin in its file."""
    stored = artifact.read(number).column("feature")[row].as_py()
    return artifact.folder.read(artifact.shard_name(number)).index(stored)
