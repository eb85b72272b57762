"""Folder: a place on any fsspec URL where a file is either absent or whole.

On local disks a file is written beside its place, fsynced and renamed; on an object store a write is one put. Two writers
of the same bytes harm nothing. Names are relative, with "/" between parts, and never climb out.
"""

import fcntl
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from schemas.errors import ConfigError, DataError, MissingLibrary

ABANDONED_AFTER_SECONDS = 3600.0
_FSYNCS_AT_ONCE = 16


@dataclass(frozen=True)
class Folder:
    """A folder named by an fsspec URL (`runs/a`, `s3://bucket/a`, `memory://a`); it need not exist yet."""

    url: str

    @property
    def fs(self) -> Any:
        return self._place[0]

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The filesystem, and this folder's path on it. Found once: it takes longer than reading a shard's footer."""
        try:
            fs, root = fsspec.core.url_to_fs(self.url)
            return fs, root.rstrip("/")
        except ImportError as error:
            raise MissingLibrary(str(error), self.url, "Install the storage package it names.") from None
        except ValueError as error:
            raise ConfigError(str(error), self.url, "Give a local path or a URL that fsspec knows.") from None

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str = "") -> str:
        """The path of `name` as its filesystem wants it."""
        if name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise DataError(f"the name {name!r} climbs out of its folder", self.url, "Use a relative name without '..'.")
        root = self._place[1]
        return f"{root}/{name}" if name else root

    def __reduce__(self) -> tuple[type["Folder"], tuple[str]]:
        """Whoever gets it may stand in another directory: a relative path goes out as an absolute one."""
        return Folder, (self.path() if self.is_local else self.url,)

    def child(self, name: str) -> "Folder":
        return Folder(f"{self.url.rstrip('/')}/{name}")

    def exists(self, name: str = "") -> bool:
        return bool(self.fs.exists(self.path(name)))

    def read(self, name: str) -> bytes:
        """The whole file; `FileNotFoundError` where there is none."""
        return self.fs.cat_file(self.path(name))

    def open(self, name: str) -> Any:
        return self.fs.open(self.path(name), "rb")

    def tail(self, name: str, size: int, most: int) -> bytes:
        """The last `most` bytes of a file of `size` bytes, or all of it, in one request."""
        start = max(0, size - most)
        if not self.is_local:
            return self.fs.cat_file(self.path(name), start=start)
        with open(self.path(name), "rb", buffering=0) as file:
            file.seek(start)
            return file.read()

    def size(self, name: str) -> int:
        return int(self.fs.size(self.path(name)))

    def names(self) -> dict[str, int]:
        """name -> bytes of the files directly in this folder, in order of name; temporary files are not among them."""
        if self.is_local:
            return dict(sorted(_local_files(Path(self.path()))))
        try:
            entries = self.fs.ls(self.path(), detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        files = ((entry["name"].rsplit("/", 1)[-1], int(entry["size"])) for entry in entries if entry["type"] == "file")
        return dict(sorted((name, size) for name, size in files if name and not _is_temporary(name)))

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted."""
        try:
            entries = self.fs.ls(self.path(), detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")

    def tree(self) -> dict[str, int]:
        """name relative to this folder -> bytes of every file below it, sorted; temporary files are not among them."""
        root = self.path()
        found = self.fs.find(root, detail=True, refresh=True) if self.exists() else {}
        names = {path[len(root) :].lstrip("/"): int(entry["size"]) for path, entry in found.items()}
        return {name: names[name] for name in sorted(names) if not _is_temporary(name)}

    def write(self, name: str, data: bytes | memoryview, *, durable: bool = True) -> None:
        """Publish `data` as `name`: after a crash at any moment the file is absent, the old one, or this one whole. Where not
        `durable`, a power cut may still take the file until `settle` has returned; a killed process leaves it whole."""
        if not self.is_local:
            self.fs.pipe_file(self.path(name), bytes(data))
            return
        with self.staged(name, durable=durable) as path, path.open("wb") as file:
            file.write(data)

    @contextmanager
    def staged(self, name: str, *, durable: bool = True) -> Iterator[Path]:
        """A local path to write; when the block ends well the file is published as `name`, else it is removed."""
        target = Path(self.path(name))
        _make_folders(Path(self.path()), durable=True)  # `settle` begins at this folder, not above it
        _make_folders(target.parent, durable=durable)
        beside = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
        try:
            with _in_hand(beside):
                yield beside
                if durable:
                    _fsync(beside)
                os.replace(beside, target)
                if durable:
                    _fsync(target.parent)
        finally:
            beside.unlink(missing_ok=True)

    def settle(self, names: Iterable[str]) -> None:
        """Return when the files `names`, and the folders from this one down to them, would outlive a power cut."""
        if not self.is_local:
            return
        root, files = Path(self.path()), [Path(self.path(name)) for name in names]
        folders = {parent for file in files for parent in file.parents if parent.is_relative_to(root)}
        with ThreadPoolExecutor(_FSYNCS_AT_ONCE) as pool:  # a journal takes many waiting files to the disk in one go
            list(pool.map(_fsync, [*files, *folders]))

    def remove(self, name: str = "") -> None:
        """Delete a file, or a folder with all below it; nothing happens where there is none."""
        if self.exists(name):
            self.fs.rm(self.path(name), recursive=True)

    def sweep(self) -> int:
        """Remove what is `abandoned`; returns how many files that were."""
        names = self.abandoned()
        for name in names:
            Path(self.path(name)).unlink(missing_ok=True)
        return len(names)

    def abandoned(self) -> list[str]:
        """Names of the temporary files below this folder that are old and in no living writer's hand, sorted. Clocks jump and
        writers are held up, so age alone is believed only where the disk knows no locks."""
        root = Path(self.path())
        if not self.is_local or not root.is_dir():
            return []
        old = time.time() - ABANDONED_AFTER_SECONDS
        return sorted(path.relative_to(root).as_posix() for path in root.rglob(".*.tmp") if _is_abandoned(path, old))


def _local_files(root: Path) -> Iterator[tuple[str, int]]:
    if not root.is_dir():
        return
    with os.scandir(root) as entries:
        for entry in entries:
            if not _is_temporary(entry.name) and entry.is_file():
                yield entry.name, entry.stat().st_size


def _is_temporary(name: str) -> bool:
    last = name.rsplit("/", 1)[-1]
    return last.startswith(".") and last.endswith(".tmp")


def _make_folders(folder: Path, *, durable: bool) -> None:
    """Make `folder` and what lacks above it; where `durable`, a power cut will not take their names again."""
    if folder.is_dir():
        return
    _make_folders(folder.parent, durable=durable)
    folder.mkdir(exist_ok=True)
    if durable:
        _fsync(folder.parent)


@contextmanager
def _in_hand(path: Path) -> Iterator[None]:
    """Create `path` and hold a lock on it, which ends with this process at the latest, however it ends."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        with suppress(OSError):  # not every network disk knows locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_abandoned(path: Path, old: float) -> bool:
    try:
        if path.stat().st_mtime >= old:
            return False
        handle = os.open(path, os.O_RDWR)
    except OSError:  # gone since it was listed, or not ours to take
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        os.close(handle)
    return True


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
