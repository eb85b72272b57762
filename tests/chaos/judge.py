"""Holds what lies in a workspace against the unbroken run: between faults, and when all is said to be done.

The judge reads the files themselves. What a writer claims (the shards that count, the record) is compared with them byte by
byte, so that nothing is believed because it opens, and nothing because its writer says so.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from flows.states import state_of
from schemas.artifact import RECORD, Artifact, Record, damaged, verify
from schemas.errors import BrokenArtifact
from schemas.storage import ABANDONED_AFTER_SECONDS
from tests.chaos.weak import WeakArtifact


@dataclass(frozen=True)
class Truth:
    """The artifact of an unbroken run."""

    unbroken: Artifact

    @cached_property
    def shards(self) -> dict[str, bytes]:
        names = map(self.unbroken.shard_name, range(self.unbroken.shards))
        return {name: self.unbroken.folder.read(name) for name in names}

    @cached_property
    def record(self) -> Record:
        record = self.unbroken.record()
        assert record is not None
        return record

    @cached_property
    def keys(self) -> list[str]:
        return _keys(self.unbroken)


def between_faults(output: Artifact, truth: Truth, *, silent: bool = False) -> list[str]:
    """What is claimed now and is not so. Where the store is `silent` about damage, `verify` must name it, and nothing else."""
    record, counted = _record(output), {part.name for part in output.found().values()}
    claimed = truth.shards.keys() if record else counted
    wrong = {name for name in claimed if _read(output, name) != truth.shards[name]}
    if record and _timeless(record) != _timeless(truth.record):
        wrong.add(RECORD)
    if record and not silent and (said := state_of(output)).kind != "done":
        wrong.add(f"{RECORD} ({said.kind}: {said.reason})")
    if not silent:
        return [f"{name} is taken for done and is lost or wrong" for name in sorted(wrong)]
    named = set(map(_named(output), complaints(output)))
    return [f"{name} is damaged and verify is silent" for name in sorted(wrong - named)]


def complaints(output: Artifact) -> list[str]:
    """What `sailyard verify` says of the artifact: faults of a complete one, damaged shards of a half-made one. Of the weak
    writer's there is nothing that it could say."""
    if isinstance(output, WeakArtifact):
        return []
    return verify(output.folder) if output.folder.exists(RECORD) else damaged(output.folder)


def heal(output: Artifact) -> list[str]:
    """Delete what verify names, as a user would; returns the names. What it says of the whole folder, it says of the record."""
    names = list(map(_named(output), complaints(output)))
    for name in names:
        output.folder.remove(name)
    return names


def _named(output: Artifact) -> Callable[[str], str]:
    """From a line of `verify` to the file that it names."""
    return lambda line: RECORD if line.startswith(f"{output.where}:") else line.removeprefix(f"{output.where}/").split(":")[0]


def in_the_end(output: Artifact, truth: Truth) -> tuple[list[str], int]:
    """What is not as the unbroken run left it, and the number of files that dead writers left: each is counted, no reader
    sees it, and the first sweep of a later day takes it."""
    wrong = between_faults(output, truth)
    if not isinstance(output.record(), Record):
        return [*wrong, "there is no record"], 0
    wrong += complaints(output)
    if not wrong and _keys(output) != truth.keys:
        wrong.append("rows are lost, doubled or out of order")
    extra = _files(output) - truth.shards.keys() - {RECORD}
    wrong += [f"{name} is neither in the record nor a temporary file" for name in extra if not name.endswith(".tmp")]
    return wrong + _unswept(output, extra), len(extra)


def _unswept(output: Artifact, orphans: set[str]) -> list[str]:
    """Let a day go by, and sweep."""
    root = Path(output.folder.path())
    for name in orphans:
        old = (root / name).stat().st_mtime - 2 * ABANDONED_AFTER_SECONDS
        os.utime(root / name, (old, old))
    swept, left = output.folder.sweep(), _files(output)
    return [] if (swept, len(left)) == (len(orphans), output.shards + 1) else [f"{swept} of {len(orphans)} orphans were swept"]


def _record(output: Artifact) -> Record | None:
    """A record that cannot be read claims nothing."""
    try:
        return output.record()
    except BrokenArtifact:
        return None


def _timeless(record: Record | None) -> Record | None:
    return record and replace(record, started="", ended="", summary={})


def _read(output: Artifact, name: str) -> bytes:
    return output.folder.read(name) if output.folder.exists(name) else b""


def _keys(output: Artifact) -> list[str]:
    return [key for table in output.iterate(["image_key"]) for key in table.column("image_key").to_pylist()]


def _files(output: Artifact) -> set[str]:
    """Names of all files, temporary ones too."""
    root = Path(output.folder.path())
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
