"""Whether stored features are what was stored: each row by its size, its CRC and its values, each shard by its channels'
means, which those of the other shards foretell.

Shapes: S shards, C channels (of codecs that reduce them, components).
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.artifact import Artifact
from schemas.errors import BrokenArtifact, DataError
from schemas.features import FeatureSpec

LEAST_SHARDS, LEAST_ROWS = 4, 8  # below which nothing is said of drift
DRIFT = 6.0  # standard errors, as the root of the mean square over the channels


@dataclass(frozen=True)
class ShardCheck:
    """`faults` says by row what is wrong; the means and variances over the sound rows are of the channels' means."""

    rows: int
    faults: dict[int, str]
    mean_C: np.ndarray
    variance_C: np.ndarray

    @property
    def sound(self) -> int:
        return self.rows - len(self.faults)


def check_shard(artifact: Artifact, number: int) -> ShardCheck:
    """A shard of features, row by row; `BrokenArtifact` where it is no sound table."""
    assert artifact.table is not None and artifact.table.spec is not None, f"{artifact.where} holds no features"
    try:
        rows = artifact.read(number)
        rows.validate(full=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise BrokenArtifact(
            f"shard {number} cannot be read: {error}", artifact.where, "Run `sailyard verify CONFIG --heal`."
        ) from None
    faults: dict[int, str] = {}
    means: list[np.ndarray] = []
    columns = {name: rows.column(name) for name in ("height", "width", "size", "crc", "feature", "error")}
    for index in range(len(rows)):
        found = _check_row({name: column[index] for name, column in columns.items()}, artifact.table.spec)
        if isinstance(found, str):
            faults[index] = found
        elif found is not None:
            means.append(found)
    stacked = np.stack(means) if means else np.zeros((0, 0))
    return ShardCheck(len(rows), faults, stacked.mean(axis=0), stacked.var(axis=0)) if means else _nothing(len(rows), faults)


def _nothing(rows: int, faults: dict[int, str]) -> ShardCheck:
    return ShardCheck(rows, faults, np.zeros(0), np.zeros(0))


def _check_row(row: Mapping[str, Any], spec: FeatureSpec) -> np.ndarray | str | None:
    """The means of its channels, or what is wrong with it; None for a row that failed."""
    has_feature, has_error = row["feature"].is_valid, row["error"].is_valid
    if has_feature == has_error:
        return "it has both a feature and an error" if has_feature else "it has neither a feature nor an error"
    if has_error:
        return None
    stored, told = row["feature"].as_buffer(), {name: row[name].as_py() for name in ("height", "width", "size", "crc")}
    if len(stored) != told["size"]:
        return f"{len(stored)} bytes where it says {told['size']}"
    if zlib.crc32(stored) != told["crc"]:
        return "its bytes do not give its CRC"
    try:
        values = spec.decode(memoryview(stored), told["height"], told["width"])
    except (DataError, ValueError, TypeError) as error:
        return f"it cannot be decoded: {error}"
    return values.reshape(len(values), -1).mean(axis=1, dtype=np.float64) if np.isfinite(values).all() else "it is not finite"


def drifting(checks: Mapping[int, ShardCheck]) -> dict[int, float]:
    """Shards whose channels' means are far from the median of all shards -> by how many standard errors. A key is a digest,
    so every shard is a random sample of the pool: its means vary as those of single rows do, over the root of their number."""
    large = {number: check for number, check in checks.items() if check.sound >= LEAST_ROWS and check.mean_C.size}
    if len(large) < LEAST_SHARDS:
        return {}
    mean_SC = np.stack([check.mean_C for check in large.values()])
    variance_C = np.median(np.stack([check.variance_C for check in large.values()]), axis=0)
    rows_S1 = np.array([[check.sound] for check in large.values()])
    away_SC = np.abs(mean_SC - np.median(mean_SC, axis=0))
    spread_C = 1.4826 * np.median(away_SC, axis=0)
    scale_SC = np.maximum(np.sqrt(variance_C / rows_S1), spread_C)
    scale_SC = np.maximum(scale_SC, 1e-6 * np.abs(mean_SC).max() + np.finfo(float).tiny)
    score_S = np.sqrt(np.mean((away_SC / scale_SC) ** 2, axis=1))
    return {number: float(score) for number, score in zip(large, score_S, strict=True) if score > DRIFT}
