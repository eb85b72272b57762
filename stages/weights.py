"""The weights of a teacher that a stage opens: part of the identity of what it makes, and worth a note where they are drawn."""

from pathlib import Path

from schemas.artifact import file_digest
from schemas.config import fingerprint
from schemas.storage import Folder
from teachers.base import NetworkConfig

ABSENT = "not there"


def weights_digest(teacher: NetworkConfig) -> dict[str, str]:
    """A digest of the local weight files that are read, so that other weights under the same name are another identity; none
    for weights that are drawn from a seed, or that the project makes itself, as an input of whoever opens them.
    ABSENT in its place is no obstacle to reading what was made when they were there, only to making more."""
    if teacher.is_random or teacher.is_taught:
        return {}
    path = Path(teacher.folder or ABSENT)
    folder = Folder(str(path.parent if path.is_file() else path))
    names = [path.name] if path.is_file() else [name for name in folder.names() if _is_read(name)]
    return {"weights": fingerprint({name: file_digest(folder, name) for name in names}) if names else ABSENT}


def _is_read(name: str) -> bool:
    return name == "config.json" or name.endswith((".safetensors", ".safetensors.index.json", ".bin"))


def random_weights_note(teacher: NetworkConfig) -> list[str]:
    return [f"the weights of {teacher.kind} are random (seed {teacher.seed}), not trained"] if teacher.is_random else []
