"""Artifact: a directory of numbered shards, or of plain files, and one record that is written last.

The rules that make a store resumable without a database:

- A file that exists is whole (`Folder` sees to that), and an artifact with a record is complete. Nothing else counts.
- The record carries a digest of itself. One that does not give it counts for nothing, and `verify` says so.
- A shard's footer carries its fingerprint, the identity behind it, its rows and a digest of the whole file, computed with
  the digest's own 64 characters as zeros. A shard counts as done only under today's fingerprint.
- The identity is what the bytes depend on: table version, stage, config and the fingerprints of the inputs.
- Encoding is deterministic and holds no time, host or path: the same rows give the same bytes.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from schemas import tables
from schemas.config import fingerprint
from schemas.errors import BrokenArtifact
from schemas.features import FeatureSpec
from schemas.storage import Folder
from schemas.tables import Table

RECORD = "record.json"
_MAGIC = {"parquet": b"PAR1", "arrow": b"ARROW1"}
_START, _NO_DIGEST = b'{"sailyard":', "0" * 64
_TAIL_BYTES = 1 << 16
_OWN_DIGEST = "record_digest"
_FOOTER = {"shard": int, "rows": int, "failed": int, "left_out": dict, "fingerprint": str, "identity": dict, "digest": str}


@dataclass(frozen=True)
class Part:
    """One file of an artifact: a shard (rows are counted) or a plain file (they are not)."""

    name: str
    bytes: int
    digest: str
    rows: int = 0
    failed: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """What is written when an artifact is complete. It names no host and no path outside the workspace."""

    table: dict[str, Any]
    fingerprint: str
    identity: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    parts: list[Part]
    started: str
    ended: str
    code: str
    packages: dict[str, str]
    summary: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def failed(self) -> int:
        return sum(part.failed for part in self.parts)

    @property
    def total_bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def digest(self) -> str:
        """Of all its bytes: records with one digest are of one content."""
        return fingerprint({part.name: part.digest for part in self.parts})

    def json(self) -> str:
        data = json.loads(json.dumps(asdict(self)))
        return json.dumps({**data, _OWN_DIGEST: _digest_of(data)}, indent=1)

    @classmethod
    def parse(cls, text: bytes | str, where: str) -> "Record":
        try:
            data = json.loads(text)
            if data.pop(_OWN_DIGEST) != _digest_of(data):
                raise ValueError("it does not give its own digest")
            return cls(**{**data, "parts": [Part(**part) for part in data["parts"]]})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BrokenArtifact(f"the record cannot be read: {error}", where, "Delete it and run again.") from None


@dataclass(frozen=True)
class Artifact:
    """A folder that holds, or shall hold, `shards` shards of `table` made under `identity`; without a table, plain files.
    `name` is its place in the workspace, such as `features/sam2`."""

    folder: Folder
    identity: Mapping[str, Any]
    table: Table | None = None
    shards: int = 0
    name: str = ""

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.identity)

    @property
    def where(self) -> str:
        return self.folder.url

    @classmethod
    def sealed(cls, folder: Folder, name: str = "") -> "Artifact":
        """The complete artifact in `folder`, as its record describes it."""
        record = cls(folder, {}).record()
        if record is None:
            raise BrokenArtifact("there is no complete artifact here", folder.url, "Run the step that makes it.")
        table = _table_of(record.table)
        return cls(folder, record.identity, table, len(record.parts) if table else 0, name)

    # -- reading ---------------------------------------------------------------------------------------------------

    def record(self) -> Record | None:
        """The record of the complete artifact that lies here, whatever its fingerprint."""
        try:
            return Record.parse(self.folder.read(RECORD), self.folder.path(RECORD))
        except FileNotFoundError:
            return None

    def reference(self) -> dict[str, str]:
        """How the record of what is made from it names it."""
        record = self.record()
        return {"name": self.name, "fingerprint": self.fingerprint, "digest": record.digest if record else ""}

    def shard_name(self, number: int) -> str:
        assert self.table is not None, f"{self.where} holds files, not shards"
        return f"shard-{number:05d}.{self.table.format}"

    def read(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Shard `number`; a local Arrow file is memory-mapped, everything else is read into memory."""
        name = self.shard_name(number)
        try:
            if self.table is not None and self.table.format == "arrow":
                return _read_arrow(self.folder, name, columns)
            source = self.folder.path(name) if self.folder.is_local else pa.py_buffer(self.folder.read(name))
            return pq.ParquetFile(source).read(columns=columns)
        except (pa.ArrowInvalid, FileNotFoundError) as error:
            raise BrokenArtifact(f"shard {number} cannot be read: {error}", self.where, "Run `sailyard verify`.") from None

    def iterate(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        return (self.read(number, columns) for number in range(self.shards))

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, number: int, rows: pa.Table) -> Part:
        """Publish shard `number`. `rows` has the table's schema; those with an `error` count as failed."""
        assert self.table is not None, f"{self.where} holds files, not shards"
        left_out = tables.left_out(rows)
        failed = len(rows) - rows.column("error").null_count if self.table.has_errors else 0
        footer = {
            "sailyard": 1,
            "shard": number,
            "rows": len(rows),
            "failed": failed,
            "left_out": left_out,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "digest": _NO_DIGEST,
        }
        text = json.dumps(footer, sort_keys=False, separators=(",", ":"))
        encode = _encode_arrow if self.table.format == "arrow" else _encode_parquet
        data, digest = _sign(bytearray(encode(rows.cast(self.table.schema), text)))
        name = self.shard_name(number)
        self.folder.write(name, data)
        return Part(name, len(data), digest, len(rows), failed, left_out)

    def found(self) -> dict[int, Part]:
        """The shards that count: whole, numbered below `shards` and of today's fingerprint."""
        today = self.fingerprint
        mine = ((n, footer) for n, footer in self._footers() if footer["fingerprint"] == today and footer["shard"] == n)
        return {number: _part(footer) for number, footer in mine}

    def _footers(self) -> Iterator[tuple[int, dict[str, Any]]]:
        sizes = self.folder.names()
        wanted = [(n, self.shard_name(n)) for n in range(self.shards) if self.shard_name(n) in sizes]
        if self.folder.is_local:
            footers: Iterable[dict[str, Any] | None] = (read_footer(self.folder, name, sizes[name]) for _, name in wanted)
        else:
            with ThreadPoolExecutor(32) as pool:
                footers = list(pool.map(lambda item: read_footer(self.folder, item[1], sizes[item[1]]), wanted))
        for (number, _), footer in zip(wanted, footers, strict=True):
            if footer is not None:
                yield number, footer

    def seal(self, started: str, ended: str, inputs: Mapping[str, "Artifact"], **extra: Any) -> Record:
        """Write the record over the files that lie here; every shard must. Plain files are settled first, for they may have
        been written without waiting for the disk. `extra`: code, packages, summary, failures."""
        parts = self._shard_parts() if self.table else self._file_parts()
        record = Record(
            table=_table_fields(self.table),
            fingerprint=self.fingerprint,
            identity=dict(self.identity),
            inputs={role: made.reference() for role, made in inputs.items()},
            parts=parts,
            left_out=dict(sum((Counter(part.left_out) for part in parts), Counter[str]())),
            started=started,
            ended=ended,
            **extra,
        )
        self.folder.sweep()
        self.folder.write(RECORD, record.json().encode())
        return record

    def _shard_parts(self) -> list[Part]:
        found = self.found()
        missing = [number for number in range(self.shards) if number not in found]
        if missing:
            raise BrokenArtifact(f"{len(missing)} of {self.shards} shards are missing", self.where, "Run the step again.")
        for name in self.folder.names().keys() - {part.name for part in found.values()} - {RECORD}:
            self.folder.remove(name)
        return [found[number] for number in range(self.shards)]

    def _file_parts(self) -> list[Part]:
        sizes = self.folder.tree()
        names = [name for name in sizes if name != RECORD]
        self.folder.settle(names)
        return [Part(name, sizes[name], file_digest(self.folder, name)) for name in names]


def _digest_of(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def verify(folder: Folder) -> list[str]:
    """One line for each thing in the artifact at `folder` that is not as its record says; none when all is well."""
    try:
        record = Artifact(folder, {}).record()
    except BrokenArtifact as error:
        return [str(error), *damaged(folder)]
    if record is None:
        return [f"{folder.url}: no record: the artifact is not complete"]
    faults = [] if fingerprint(record.identity) == record.fingerprint else [f"{folder.url}: identity and fingerprint differ"]
    sizes = folder.tree()
    for part in record.parts:
        fault = _part_fault(folder, part, sizes.get(part.name), shard=bool(record.table))
        faults += [f"{folder.url}/{part.name}: {fault}"] if fault else []
    unknown = sizes.keys() - {part.name for part in record.parts} - {RECORD}
    faults += [f"{folder.url}/{name}: a file that the record does not list" for name in sorted(unknown)]
    return faults + [f"{folder.url}/{name}: what a writer that died has left" for name in folder.abandoned()]


def damaged(folder: Folder) -> list[str]:
    """One line for each shard in `folder`, of an artifact without a record, that looks whole, and would count, but is not."""
    sizes = {name: size for name, size in folder.names().items() if is_shard(name)}
    footers = {name: read_footer(folder, name, size) for name, size in sizes.items()}
    whole = {name: footer for name, footer in footers.items() if footer}
    bad = [name for name, footer in whole.items() if shard_digest(folder.read(name)) != footer.get("digest")]
    return [f"{folder.url}/{name}: its bytes do not give the digest in its footer" for name in bad]


def is_shard(name: str) -> bool:
    return name.startswith("shard-") and name.rsplit(".", 1)[-1] in _MAGIC


def _part_fault(folder: Folder, part: Part, size: int | None, *, shard: bool) -> str:
    if size is None:
        return "missing"
    if size != part.bytes:
        return f"{size} bytes where the record says {part.bytes}"
    digest = shard_digest(folder.read(part.name)) if shard else file_digest(folder, part.name)
    if digest != part.digest:
        return "its bytes do not give the recorded digest"
    footer = read_footer(folder, part.name, size) if shard else {"digest": digest, "rows": part.rows}
    if footer is None or (footer["digest"], footer["rows"]) != (part.digest, part.rows):
        return "its footer and the record differ"
    return ""


def file_digest(folder: Folder, name: str) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with folder.open(name) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def shard_digest(data: bytes) -> str:
    """SHA-256 of a shard with its own digest as zeros; empty where the shard carries none."""
    at = data.rfind(b'"digest":"', max(0, len(data) - _TAIL_BYTES))
    if at < 0:
        return ""
    at += len(b'"digest":"')
    return hashlib.sha256(data[:at] + _NO_DIGEST.encode() + data[at + 64 :]).hexdigest()


def read_footer(folder: Folder, name: str, size: int) -> dict[str, Any] | None:
    """What the shard says of itself, with its name and size; None for a file that is not a whole shard."""
    try:
        tail = folder.tail(name, size, _TAIL_BYTES)
    except OSError:
        return None
    at = tail.rfind(_START)
    if at < 0 or not tail.endswith(_MAGIC[name.rsplit(".", 1)[-1]]):
        return None
    try:
        footer, _ = json.JSONDecoder().raw_decode(tail[at:].decode("utf-8", errors="replace"))
    except ValueError:
        return None
    if not all(isinstance(footer.get(key), kind) for key, kind in _FOOTER.items()):
        return None
    return {**footer, "name": name, "bytes": size}


def _part(footer: dict[str, Any]) -> Part:
    names = ("name", "bytes", "digest", "rows", "failed", "left_out")
    return Part(*(footer[name] for name in names))


def _sign(data: bytearray) -> tuple[memoryview, str]:
    digest = hashlib.sha256(data).hexdigest()
    at = data.rindex(f'"digest":"{_NO_DIGEST}"'.encode()) + len(b'"digest":"')
    data[at : at + 64] = digest.encode()
    return memoryview(data), digest


def _encode_parquet(rows: pa.Table, footer: str) -> pa.Buffer:
    """Blobs are neither compressed nor counted in statistics, and a row of them is a row group, to be read alone."""
    blobs = [f.name for f in rows.schema if pa.types.is_large_binary(f.type)]
    compression: Any = {_leaf(f): "none" if f.name in blobs else "zstd" for f in rows.schema} if blobs else "zstd"
    sink = pa.BufferOutputStream()
    writer = pq.ParquetWriter(sink, rows.schema, compression=compression, use_dictionary=not blobs, write_statistics=not blobs)
    with writer:
        writer.write_table(rows, row_group_size=1 if blobs else 1024)
        writer.add_key_value_metadata({"sailyard": footer})
    return sink.getvalue()


def _leaf(column: pa.Field) -> str:
    return f"{column.name}.list.element" if pa.types.is_list(column.type) else column.name


def _encode_arrow(rows: pa.Table, footer: str) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, rows.schema, metadata={"sailyard": footer}) as writer:
        writer.write_table(rows.combine_chunks())
    return sink.getvalue()


def _read_arrow(folder: Folder, name: str, columns: Sequence[str] | None) -> pa.Table:
    source = pa.memory_map(folder.path(name)) if folder.is_local else pa.py_buffer(folder.read(name))
    table = pa.ipc.open_file(source).read_all()
    return table.select(list(columns)) if columns else table


def _table_fields(table: Table | None) -> dict[str, Any]:
    if table is None:
        return {}
    spec = {"spec": table.spec.model_dump()} if table.spec else {}
    return {"name": table.name, "version": table.version, "format": table.format, **spec}


def _table_of(fields: Mapping[str, Any]) -> Table | None:
    if not fields:
        return None
    if "spec" in fields:
        return tables.features(FeatureSpec(**fields["spec"]))
    return replace(next(t for t in tables.ALL if t.name == fields["name"]), version=fields["version"])
