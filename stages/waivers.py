"""Waivers: rows that are known to fail, and may. They stay failed and are listed, but no longer count against
`max_error_rate`.

They lie beside the artifacts, in `waived/<name of the artifact>.json` of the workspace: a waiver is somebody's word, not
something made, and outlives the artifact's being made anew. It holds for one row and one class of failure: a row that comes
to fail otherwise is news. What is waived of a picture itself holds in every table whose row has failed for that very reason.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from schemas.artifact import Artifact
from schemas.errors import BrokenArtifact
from schemas.row_errors import ErrorClass, RowError
from schemas.storage import Folder

FOLDER, PICTURES = "waived", "images"


@dataclass(frozen=True)
class Waiver:
    image_key: str
    kind: ErrorClass
    message: str
    why: str


class Waivers:
    """Those of one artifact, and those of the pictures themselves."""

    def __init__(self, own: Iterable[Waiver] = (), of_pictures: Iterable[Waiver] = ()):
        self._own = {(each.image_key, each.kind): each.why for each in own}
        self._of_pictures = {(each.image_key, each.kind, each.message): each.why for each in of_pictures}

    def why(self, image_key: str, error: str) -> str | None:
        """Why this failure of this row is waived; None where it is not."""
        told = RowError.parse(error)
        inherited = self._of_pictures.get((image_key, told.kind, told.message))
        return self._own.get((image_key, told.kind), inherited)


def read_waivers(artifact: Artifact) -> Waivers:
    place = _place(artifact)
    return Waivers(_read(*place), _read(place[0], _file(PICTURES))) if place else Waivers()


def add_waivers(artifact: Artifact, waivers: Iterable[Waiver]) -> None:
    """Write down more; of two for the same failure the later one stands."""
    place = _place(artifact)
    assert place is not None, f"{artifact.where} has no name in a workspace"
    known = {(each.image_key, each.kind): each for each in [*_read(*place), *waivers]}
    folder, name = place
    folder.write(name, json.dumps([asdict(known[key]) for key in sorted(known)], indent=1).encode())


def _read(folder: Folder, name: str) -> list[Waiver]:
    try:
        return [Waiver(**each) for each in json.loads(folder.read(name))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise BrokenArtifact(f"the waivers cannot be read: {error}", folder.path(name), "Delete it, waive again.") from None


def _place(artifact: Artifact) -> tuple[Folder, str] | None:
    """The workspace, and the file in it; None for an artifact that does not lie in one under its name."""
    url, name = artifact.folder.url.rstrip("/"), f"/{artifact.name}"
    if not artifact.name or not url.endswith(name):
        return None
    return Folder(url.removesuffix(name)), _file(artifact.name)


def _file(name: str) -> str:
    return f"{FOLDER}/{name}.json"
