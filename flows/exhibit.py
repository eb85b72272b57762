"""One artifact held up to the light, for `sailyard show`: its record, where it comes from, and its first rows or files."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

from flows.results import place
from flows.states import seconds_between
from flows.words import duration, grid, size
from schemas.artifact import RECORD, Artifact
from schemas.storage import Folder

ROWS, FILES, WIDTH = 3, 12, 100


def open_artifact(url: str) -> Artifact:
    """The complete artifact at `url`, under the name it has in its workspace."""
    folder = Folder(url.rstrip("/"))
    return Artifact.sealed(folder, _split(folder)[1])


def describe(artifact: Artifact) -> dict[str, Any]:
    """All there is to say, as JSON types."""
    record = artifact.record()
    assert record is not None
    rows = [_plain(row) for row in _rows(artifact)]
    return {
        "name": artifact.name,
        "path": place(artifact),
        "record": asdict(record),
        "lineage": lineage(artifact),
        "rows": rows,
    }


def as_text(shown: Mapping[str, Any]) -> str:
    record = shown["record"]
    parts = record["parts"]
    rows, failed, total = (sum(part[name] for part in parts) for name in ("rows", "failed", "bytes"))
    facts = [
        ("artifact", shown["path"]),
        ("table", f"{record['table']['name']} version {record['table']['version']}" if record["table"] else "files"),
        ("holds", f"{len(parts)} files, {size(total)}" + (f", {rows} rows, {failed} failed" if record["table"] else "")),
        ("made", f"{record['ended']}, in {duration(seconds_between(record['started'], record['ended']))}"),
        ("by", f"{record['identity']['stage']} version {record['identity']['version']}, code {record['code']}"),
        ("fingerprint", record["fingerprint"]),
        *((f"config {name}", _short(value)) for name, value in record["identity"]["config"].items()),
        *((f"outside {name}", value) for name, value in record["identity"]["outside"].items()),
        *((name, _short(value)) for name, value in record["summary"].items()),
        *(("left out", f"{count} {reason}") for reason, count in record["left_out"].items()),
        *(("failure", line) for line in record["failures"][:ROWS]),
    ]
    sources = [(made["name"], made["fingerprint"][:8], made["state"], _from(made["inputs"])) for made in shown["lineage"]]
    tail = [_row_text(row) for row in shown["rows"]] or [f"{part['name']}  {size(part['bytes'])}" for part in parts[:FILES]]
    return "\n\n".join([grid(facts), "made from\n" + grid(sources) if sources else "made from nothing", "\n\n".join(tail)])


def _from(names: list[str]) -> str:
    return f"from {', '.join(names)}" if names else ""


def sheet(artifact: Artifact) -> bytes:
    """A contact sheet as PNG, drawn on the pictures of the same workspace."""
    from stages.report.pictures import sheet as drawn

    workspace, _ = _split(artifact.folder)
    there = workspace.child("images").exists(RECORD)
    return drawn(artifact, Artifact.sealed(workspace.child("images"), "images") if there else None)


def lineage(artifact: Artifact) -> list[dict[str, Any]]:
    """Every artifact that this one was made from, directly or not, each after what it was made from itself. `state` says
    whether it still lies in the workspace as it was."""
    workspace, _ = _split(artifact.folder)
    found: dict[str, dict[str, Any]] = {}

    def visit(name: str, fingerprint: str) -> None:
        if name in found:
            return
        record = Artifact(workspace.child(name), {}).record()
        same = record is not None and record.fingerprint == fingerprint
        inputs = record.inputs if record is not None and same else {}
        for made in inputs.values():
            visit(made["name"], made["fingerprint"])
        state = "there" if same else "gone" if record is None else "made anew since"
        names = [made["name"] for made in inputs.values()]
        found[name] = {"name": name, "fingerprint": fingerprint, "state": state, "inputs": names}

    record = artifact.record()
    for made in record.inputs.values() if record else ():
        visit(made["name"], made["fingerprint"])
    return list(found.values())


def _split(folder: Folder) -> tuple[Folder, str]:
    """The workspace that an artifact lies in, and its name there: one or two steps up, wherever its inputs lie."""
    record = Artifact(folder, {}).record()
    inputs = [made["name"] for made in record.inputs.values()] if record else []
    for depth in (1, 2):
        root, *names = folder.path().rsplit("/", depth) if folder.is_local else folder.url.rsplit("/", depth)
        if any(Folder(root).child(name).exists(RECORD) for name in inputs):
            return Folder(root), "/".join(names)
    root, name = (folder.path() if folder.is_local else folder.url).rsplit("/", 1)
    return Folder(root), name


def _rows(artifact: Artifact) -> Iterator[dict[str, Any]]:
    shards = artifact.iterate() if artifact.table else iter(())
    return islice((row for shard in shards for row in shard.slice(0, ROWS).to_pylist()), ROWS)


def _plain(value: Any) -> Any:
    """JSON types; bytes are told by their number."""
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _row_text(row: Mapping[str, Any]) -> str:
    return grid([(name, _short(value)) for name, value in row.items()])


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
