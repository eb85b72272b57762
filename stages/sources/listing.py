"""Which files a source consists of, and digests that say whether they are still the same.

Pictures are listed, not read: the digest is over names and sizes. Annotation files are digested byte by byte.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.artifact import file_digest
from schemas.errors import ConfigError, DataError
from schemas.storage import Folder
from stages.sources import reasonseg
from stages.sources.config import CocoSource, ImageFolder, SourceFile

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class ImageFile:
    """A picture file; `name` is what annotations call it, `path` its place in `folder` as the filesystem spells it."""

    name: str
    folder: Folder
    path: str
    size: int

    def read(self) -> bytes:
        try:
            return self.folder.read(self.path)
        except OSError as error:
            raise DataError(f"the picture {self.name!r} cannot be read: {error}", self.folder.url, "Run again.") from None


def listing(folders: Iterable[ImageFolder]) -> list[ImageFile]:
    """Every picture file of `folders` in order of name; a name stands for one file only."""
    files: dict[str, ImageFile] = {}
    for place in folders:
        for file in _pictures(place):
            if file.name in files:
                both = f"{files[file.name].folder.url} and {file.folder.url}"
                raise ConfigError(f"two pictures are called {file.name!r}", both, "Give one folder a prefix, or drop it.")
            files[file.name] = file
    return [files[name] for name in sorted(files)]


def _pictures(place: ImageFolder) -> list[ImageFile]:
    folder = Folder(place.path)
    sizes = folder.tree()
    found = [
        ImageFile(place.prefix + readable(path), folder, path, size)
        for path, size in sizes.items()
        if path.lower().endswith(SUFFIXES)
    ]
    if not found:
        what = "there is no picture file here" if sizes else "there is no such folder, or it is empty"
        raise ConfigError(what, place.path, f"Check the path; pictures end in {', '.join(SUFFIXES)}.")
    return found


def readable(name: str) -> str:
    """`name` as text that can be stored: bytes that are not UTF-8 become `\\xe9` and the like."""
    try:
        raw = os.fsencode(name)
    except UnicodeEncodeError:
        raw = name.encode("utf-8", "surrogatepass")
    return raw.decode("utf-8", "backslashreplace")


def images_digest(files: Iterable[ImageFile]) -> str:
    """SHA-256 over the names and sizes of the pictures; where they lie does not matter."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.size}\n".encode())
    return digest.hexdigest()


def annotation_digests(source: CocoSource) -> dict[str, str]:
    """label -> SHA-256 of each annotation file; that of a folder of JSON is over all of them, that of a folder of panoptic PNGs
    over names and sizes."""
    digests: dict[str, str] = {}
    for file in source.files():
        try:
            digests[file.label] = _digest(file)
        except OSError as error:
            raise ConfigError(f"the {file.kind} file cannot be read: {error}", file.url, "Check the path.") from None
        if file.masks is not None:
            digests[f"{file.label} masks"] = _sizes_digest(file.masks.tree())
    return digests


def _digest(file: SourceFile) -> str:
    if file.kind != "reasoning":
        return file_digest(file.folder, file.name)
    folder = Folder(file.url)
    text = "".join(f"{readable(name)}\0{file_digest(folder, name)}\n" for name in reasonseg.names(folder))
    text += "void"  # what is to be ignored is; annotations that were made before are made again
    return hashlib.sha256(text.encode()).hexdigest()


def _sizes_digest(sizes: Mapping[str, int]) -> str:
    text = "".join(f"{readable(name)}\0{size}\n" for name, size in sizes.items())
    return hashlib.sha256(text.encode()).hexdigest()
