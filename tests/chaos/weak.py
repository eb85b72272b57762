"""A writer as many are: a file that opens is done, a record that exists is complete. The harness has to convict it.

It writes in its place, a row at a time, and neither fsyncs nor renames nor notes what its bytes should be.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.artifact import RECORD, Artifact, Part, Record


class WeakArtifact(Artifact):
    """An artifact on a local disk."""

    def write(self, number: int, rows: pa.Table) -> Part:
        path = Path(self.folder.path(self.shard_name(number)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file, pq.ParquetWriter(file, rows.schema) as writer:
            for row in range(len(rows)):
                writer.write_table(rows.slice(row, 1))
                file.flush()
        return Part(path.name, path.stat().st_size, "", len(rows))

    def found(self) -> dict[int, Part]:
        names = {number: self.shard_name(number) for number in range(self.shards)}
        rows = {number: self._rows(name) for number, name in names.items() if self.folder.exists(name)}
        return {number: Part(names[number], self.folder.size(names[number]), "", n) for number, n in rows.items() if n >= 0}

    def _rows(self, name: str) -> int:
        try:
            return pq.ParquetFile(self.folder.path(name)).metadata.num_rows
        except (pa.ArrowInvalid, OSError):
            return -1

    def record(self) -> Record | None:
        if not self.folder.exists(RECORD):
            return None
        parts = list(self.found().values())
        return Record({}, self.fingerprint, dict(self.identity), {}, parts, "1970-01-01", "1970-01-01", "", {})

    def seal(self, started: str, ended: str, inputs: Mapping[str, Artifact], **extra: Any) -> Record:
        with Path(self.folder.path(RECORD)).open("wb") as file:
            file.write(json.dumps({"ended": ended}).encode())
        record = self.record()
        assert record is not None
        return record
