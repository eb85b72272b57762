"""Every artifact of a workspace, for `sailyard verify`: complete ones against their records, half-made ones shard by shard."""

import logging
from collections.abc import Iterator

from flows.states import IDENTITY
from schemas.artifact import RECORD, damaged, is_shard, verify
from schemas.errors import BrokenArtifact
from schemas.storage import Folder


def audit(url: str) -> Iterator[tuple[str, list[str]]]:
    """name -> faults of each artifact at or below `url`, none where all is well.

    A half-made one is no fault, for a run goes on with it: that is a note in the log, and only damaged shards are faults.
    """
    root = Folder(url.rstrip("/"))
    found = _artifacts(root)
    if not found:
        raise BrokenArtifact("there is no artifact here", url, "Name a workspace in which a run has begun.")
    for name, complete in found.items():
        folder = root.child(name) if name else root
        faults = _faults(folder) if complete else damaged(folder)
        if not complete:
            logging.getLogger(__name__).warning("%s: not complete: it has no record yet", name or url)
        if complete or faults:
            yield name or url, faults


def _artifacts(root: Folder) -> dict[str, bool]:
    """name of each artifact at or below `root` -> whether it is complete."""
    folders: dict[str, set[str]] = {}
    for path in root.tree():
        folder, _, file = path.rpartition("/")
        folders.setdefault(folder, set()).add(file)
    begun = {name: files for name, files in folders.items() if {RECORD, IDENTITY} & files or any(map(is_shard, files))}
    return {name: RECORD in files for name, files in begun.items()}


def _faults(folder: Folder) -> list[str]:
    try:
        return verify(folder)
    except BrokenArtifact as error:
        return [str(error)]
