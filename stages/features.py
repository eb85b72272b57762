"""IMAGES -> features(spec): what a frozen teacher sees in each picture, made once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from schemas import tables
from schemas.artifact import file_digest
from schemas.config import fingerprint
from schemas.errors import DataError, NonFinite
from schemas.features import FeatureSpec
from schemas.pictures import decode
from schemas.storage import Folder
from schemas.tables import Table
from stages.base import ABSENT, ErrorClass, Inputs, MapStage, Resources, ShardFunction, Tables, row_error
from teachers.config import TeacherConfig

Item = TypeVar("Item")
Result = TypeVar("Result")


class FeaturesStage(MapStage):
    """`name` is the teacher's name in the config: the column is known by it, and by nothing else, to the student."""

    name: str
    teacher: TeacherConfig

    def table(self) -> Table:
        return tables.features(self.teacher.spec(self.name))

    def outside(self) -> dict[str, str]:
        return weights_digest(self.teacher)

    def notes(self) -> list[str]:
        return random_weights_note(self.teacher)

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        from teachers.build import build_teacher

        spec = self.teacher.spec(self.name)
        teacher = build_teacher(self.teacher, spec, device=resources.device, threads=resources.threads)
        return lambda inputs: extract(teacher.features, inputs, self.table(), resources.batch)


def weights_digest(teacher: TeacherConfig) -> dict[str, str]:
    """A digest of the local weight files that are read, so that other weights under the same name are another identity."""
    if teacher.is_random:
        return {}
    path = Path(teacher.folder or ABSENT)
    folder = Folder(str(path.parent if path.is_file() else path))
    names = [path.name] if path.is_file() else [name for name in folder.names() if _is_read(name)]
    return {"weights": fingerprint({name: file_digest(folder, name) for name in names}) if names else ABSENT}


def _is_read(name: str) -> bool:
    return name == "config.json" or name.endswith((".safetensors", ".safetensors.index.json"))


def random_weights_note(teacher: TeacherConfig) -> list[str]:
    return [f"the weights of {teacher.kind} are random (seed {teacher.seed}), not trained"] if teacher.is_random else []


def extract(features: Callable[[list[np.ndarray]], list[np.ndarray]], inputs: Tables, table: Table, batch: int) -> pa.Table:
    """One row a picture: its encoded features, or null and the error that kept them from being made."""
    assert table.spec is not None
    rows = inputs["images"].to_pylist()
    images = [row for row in rows if not row["error"]]
    made = {row["image_key"]: {"image_key": row["image_key"], "error": row["error"]} for row in rows}
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        encoded = isolate(some, lambda items: _encode(features, items, table.spec))
        made |= {image["image_key"]: _row(image["image_key"], each) for image, each in zip(some, encoded, strict=True)}
    return table.rows([made[row["image_key"]] for row in rows])


def _encode(features: Callable[..., list[np.ndarray]], rows: Sequence[dict[str, Any]], spec: FeatureSpec | None) -> list[bytes]:
    assert spec is not None
    return [spec.encode(feature) for feature in features([decode(row["bytes"]) for row in rows])]


def isolate(items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]) -> list[Result | BaseException]:
    """`work(items)`; where it fails, halved until each guilty item stands alone, with its exception in its place."""
    try:
        return list(work(items))
    except (DataError, NonFinite, RuntimeError, ValueError, MemoryError) as error:
        if len(items) == 1:
            return [error]
    middle = len(items) // 2
    return isolate(items[:middle], work) + isolate(items[middle:], work)


def error_class(error: BaseException) -> ErrorClass:
    if isinstance(error, DataError | NonFinite):
        return "data"
    out_of_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return "capacity" if out_of_memory else "code"


def _row(key: str, made: bytes | BaseException) -> dict[str, Any]:
    if isinstance(made, BaseException):
        return {"image_key": key, "error": row_error(error_class(made), made)}
    return {"image_key": key, "feature": made}
