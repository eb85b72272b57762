"""Reading a few rows out of large artifacts: a fixed sample of rows, one picture, one row of a shard.

Shard k of every table of the same pictures holds the same pictures, so a row found in one table is looked up in another by
its shard and its key; nothing is searched for.
"""

import hashlib
import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from schemas.artifact import Artifact
from schemas.errors import BrokenArtifact
from schemas.pictures import decode, sound_bytes
from schemas.regions import Level, Rle
from schemas.tables import revive


class Spot(NamedTuple):
    """Where the rows of a picture lie in every table."""

    shard: int
    image_key: str


@dataclass(frozen=True)
class Prediction:
    """One row of PREDICTIONS with its place."""

    spot: Spot
    sample_id: str
    task: str
    question: str
    expected: str
    text: str
    targets: list[Rle]
    masks: list[Rle]
    levels: list[list[Level]] = field(default_factory=list)


_NESTED = {"targets": list[Rle], "masks": list[Rle], "levels": list[list[Level]]}


def good_spots(artifact: Artifact) -> Iterator[Spot]:
    """Where the rows without an error lie, in the order of the store."""
    columns = ["image_key", "error"] if artifact.table and artifact.table.has_errors else ["image_key"]
    for shard, rows in enumerate(artifact.iterate(columns)):
        for row in rows.to_pylist():
            if row.get("error") is None:
                yield Spot(shard, row["image_key"])


def sample(names: Iterable[Any], count: int, seed: int) -> list[Any]:
    """`count` of `names`, the same for the same names and seed whatever their order, and the order is a fair draw too."""
    return heapq.nsmallest(count, names, key=lambda name: (_draw(name, seed), name))


def _draw(name: Any, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def row_at(artifact: Artifact, spot: Spot, columns: Iterable[str]) -> dict[str, Any] | None:
    """The columns of the row of `spot`, None where the table does not have it or the row failed."""
    found = rows_at(artifact, spot, columns)
    return found[0] if found else None


def rows_at(artifact: Artifact, spot: Spot, columns: Iterable[str]) -> list[dict[str, Any]]:
    """The same for a table that has several rows a picture."""
    if artifact.table is None or spot.shard >= artifact.shards:
        return []
    errors = ["error"] if artifact.table.has_errors else []
    rows = artifact.read(spot.shard, ["image_key", *columns, *errors])
    places = np.flatnonzero(rows.column("image_key").to_numpy(zero_copy_only=False) == spot.image_key)
    found = rows.take(pa.array(places)).to_pylist()
    return [row for row in found if row.get("error") is None]


def picture(images: Artifact, spot: Spot) -> Image.Image | None:
    """The upright RGB picture; of its shard only its own row group is read. None where there is none."""
    name = images.shard_name(spot.shard)
    try:
        with images.folder.open(name) as file:
            shard = pq.ParquetFile(file)
            keys = shard.read(columns=["image_key"]).column(0).to_pylist()
            if spot.image_key not in keys:
                return None
            image = _row(shard, keys.index(spot.image_key), ["image_key", "bytes", "sha256"])
    except (pa.ArrowInvalid, FileNotFoundError) as error:
        raise BrokenArtifact(f"shard {spot.shard} cannot be read: {error}", images.where, "Run `sailyard verify`.") from None
    return Image.fromarray(decode(sound_bytes(image))) if image["bytes"] else None


def _row(shard: pq.ParquetFile, number: int, columns: list[str]) -> dict[str, Any]:
    """Row `number`, reading only the row group it lies in."""
    for group in range(shard.num_row_groups):
        rows = shard.metadata.row_group(group).num_rows
        if number < rows:
            return shard.read_row_group(group, columns=columns).slice(number, 1).to_pylist()[0]
        number -= rows
    raise IndexError(number)


def feature(artifact: Artifact, spot: Spot) -> np.ndarray | None:
    """A teacher's map (channels or principal components, height, width) of one picture; None where it has none, or where only
    places of it are stored."""
    assert artifact.table is not None and artifact.table.spec is not None, f"{artifact.where} holds no features"
    row = row_at(artifact, spot, ["feature", "height", "width"])
    found = artifact.table.spec.decode(row["feature"], row["height"], row["width"]) if row else None
    return found if found is not None and found.ndim == 3 else None


def read_predictions(artifact: Artifact) -> list[Prediction]:
    """Every row, in the order of the store."""
    found = []
    for shard, rows in enumerate(artifact.iterate()):
        for row in rows.to_pylist():
            spot = Spot(shard, row.pop("image_key"))
            found.append(Prediction(spot, **row | {name: revive(kind, row.get(name) or []) for name, kind in _NESTED.items()}))
    return found
