"""What lies in a workspace against what the config asks for: one `State` a step, read without touching anything.

Beside what is half made lies under which identity, and from which bytes of its inputs, it was begun: plain files carry no
footer, and a footer knows its inputs by their fingerprints alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from schemas.artifact import RECORD, Artifact, Part, Record, read_footer
from schemas.config import differences, fingerprint
from schemas.errors import BrokenArtifact, StaleArtifact

IDENTITY = "identity.json"


@dataclass(frozen=True)
class State:
    """`done` of `total` shards (or files) count today. `reason` says why a step is stale, or what a damaged one lacks;
    `by_inputs` holds where a stale step differs in nothing but its inputs."""

    kind: Literal["done", "partial", "missing", "stale"]
    done: int = 0
    total: int = 0
    rows: int = 0
    bytes: int = 0
    seconds: float | None = None
    reason: str = ""
    by_inputs: bool = False


@dataclass(frozen=True)
class StepResult:
    """What became of a step, for the reader of a run."""

    step: str
    how: Literal["computed", "reused"]
    why: str
    state: State
    failed: int
    seconds: float
    where: str


def state_of(artifact: Artifact, inputs: Mapping[str, Artifact] | None = None) -> State:
    """inputs: what it is made from, by role. Those that lie there must be of the bytes that it was made from: a training that
    is repeated with other workers has the same fingerprint and other weights."""
    record = artifact.record()
    if record is None:
        return _unsealed(artifact, inputs or {})
    if record.fingerprint != artifact.fingerprint:
        return _stale(artifact, record.identity)
    changed = _changed({role: made["digest"] for role, made in record.inputs.items()}, inputs or {})
    if changed:
        return _stale_by(changed)
    lost = _lost(artifact, record)
    if lost:
        reason = f"{len(lost)} of {len(record.parts)} files are gone or cut, such as {lost[0].name}"
        return State("partial", len(record.parts) - len(lost), len(record.parts), reason=reason)
    count = len(record.parts)
    return State("done", count, count, record.rows, record.total_bytes, seconds_between(record.started, record.ended))


def _changed(digests: Mapping[str, str], inputs: Mapping[str, Artifact]) -> list[str]:
    now = _digests(inputs)
    return [role for role, digest in digests.items() if role in now and digest != now[role]]


def _digests(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Of the bytes of those that are complete."""
    return {role: record.digest for role, made in inputs.items() if (record := made.record())}


def _stale_by(changed: list[str]) -> State:
    return State("stale", reason="; ".join(f"input {role} changed" for role in changed), by_inputs=True)


def seconds_between(started: str, ended: str) -> float:
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()


def _lost(artifact: Artifact, record: Record) -> list[Part]:
    """The files of the record that are not there, or not as long as it says."""
    sizes = artifact.folder.names() if artifact.table else artifact.folder.tree()
    return [part for part in record.parts if sizes.get(part.name) != part.bytes]


def _unsealed(artifact: Artifact, inputs: Mapping[str, Artifact]) -> State:
    if artifact.table is None:
        return _unsealed_files(artifact, inputs)
    found = artifact.found()
    other = _other_identity(artifact, {part.name for part in found.values()})
    if other is not None:
        return _stale(artifact, other)
    changed = _changed(_begun(artifact).get("inputs", {}), inputs) if found else []
    if changed:
        return _stale_by(changed)
    rows, size = (sum(getattr(part, name) for part in found.values()) for name in ("rows", "bytes"))
    return State("partial" if found else "missing", len(found), artifact.shards, rows, size)


def _other_identity(artifact: Artifact, counted: set[str]) -> Mapping[str, Any] | None:
    """The identity of a whole shard that lies here and does not count today, if there is one."""
    sizes = artifact.folder.names()
    strange = [name for name in map(artifact.shard_name, range(artifact.shards)) if name in sizes and name not in counted]
    footers = (read_footer(artifact.folder, name, sizes[name]) for name in strange)
    return next((footer["identity"] for footer in footers if footer and _differs(artifact, footer["identity"])), None)


def _unsealed_files(artifact: Artifact, inputs: Mapping[str, Artifact]) -> State:
    sizes, begun = artifact.folder.tree(), _begun(artifact)
    sizes.pop(IDENTITY, None)
    old = begun.get("identity", {})
    if sizes and _differs(artifact, old):
        return _stale(artifact, old)
    changed = _changed(begun.get("inputs", {}), inputs) if sizes else []
    if changed:
        return _stale_by(changed)
    return State("partial" if sizes else "missing", len(sizes), 0, 0, sum(sizes.values()))


def begin(artifact: Artifact, inputs: Mapping[str, Artifact]) -> None:
    """Note under which identity, and from which bytes, it is being made."""
    begun = {"identity": artifact.identity, "inputs": _digests(inputs)}
    artifact.folder.write(IDENTITY, json.dumps({**begun, "digest": fingerprint(begun)}, indent=1).encode())


def _begun(artifact: Artifact) -> dict[str, Any]:
    """What `begin` noted; nothing where the note is not there, or is damaged."""
    try:
        begun = json.loads(artifact.folder.read(IDENTITY))
        return begun if begun.pop("digest") == fingerprint(begun) else {}
    except (FileNotFoundError, ValueError, KeyError, AttributeError):
        return {}


def _differs(artifact: Artifact, old: Mapping[str, Any]) -> bool:
    return fingerprint(old) != artifact.fingerprint


def _stale(artifact: Artifact, old: Mapping[str, Any]) -> State:
    lines = differences(old, artifact.identity)
    by_inputs = all(line.startswith("inputs.") for line in lines)
    return State("stale", reason="; ".join(map(_explained, lines)), by_inputs=by_inputs)


def _explained(line: str) -> str:
    """A fingerprint says nothing to a reader; that an input is another one does."""
    field, _, change = line.partition(": ")
    return f"input {field.removeprefix('inputs.')} changed" if field.startswith("inputs.") else f"{field}: {change}"


def refuse_stale(artifact: Artifact, state: State, name: str) -> None:
    """Raise `StaleArtifact` where what lies here was made under another identity."""
    if state.kind == "stale":
        remedy = f"Run with --rebuild {name} to make it anew, or with another --workspace."
        raise StaleArtifact(state.reason, artifact.where, remedy)


def refuse_unready(artifact: Artifact, state: State, needed: Mapping[str, Artifact], name: str, *, anew: bool = False) -> None:
    """Refuse to begin the step `name`: `StaleArtifact` where what lies here was made under another identity and is not made
    `anew`; `BrokenArtifact` where something that it needs, by role, is not complete, as happens with `--only`."""
    if not anew:
        refuse_stale(artifact, state, name)
    kinds = {each.name: state_of(each).kind for each in needed.values()}
    lacking = [f"{each} ({kind})" for each, kind in kinds.items() if kind != "done"]
    if lacking:
        remedy = "Make them first: `sailyard run CONFIG`, or with --only and their names."
        raise BrokenArtifact(f"its inputs are not complete: {', '.join(lacking)}", name, remedy)


def clear(artifact: Artifact) -> None:
    """Withdraw what lies here, the record first, so that nothing counts as complete while it is taken away."""
    artifact.folder.remove(RECORD)
    artifact.folder.remove()
