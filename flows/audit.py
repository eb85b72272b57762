"""Every artifact of a workspace against its record, for `sailyard verify`."""

from collections.abc import Iterator

from schemas.artifact import RECORD, verify
from schemas.errors import BrokenArtifact
from schemas.storage import Folder


def audit(url: str) -> Iterator[tuple[str, list[str]]]:
    """name -> faults of each artifact at or below `url`, none where all is well."""
    root = Folder(url.rstrip("/"))
    names = [name.removesuffix(RECORD).rstrip("/") for name in root.tree() if name.rsplit("/", 1)[-1] == RECORD]
    if not names:
        raise BrokenArtifact("there is no complete artifact here", url, "Name a workspace in which a run has ended.")
    for name in names:
        yield name or url, _faults(root.child(name) if name else root)


def _faults(folder: Folder) -> list[str]:
    try:
        return verify(folder)
    except BrokenArtifact as error:
        return [str(error)]
