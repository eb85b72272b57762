"""A local disk that fails at a chosen boundary, or at a chosen byte.

`Disk.install` stands between this process and every file below `root`: each moment before, amid and after an open, a write,
an fsync, a rename, a mkdir or an unlink is a boundary, and they are numbered from 1. What happens at boundary `at`:

- kill: SIGKILL.
- power: what POSIX lets a power cut take is taken, then SIGKILL. Names whose folder was not fsynced since may be undone, the
  last first; files that were not fsynced since they were written may be empty, cut, full of zeros or have a hole.
- interrupt: KeyboardInterrupt, as Ctrl-C does.
- stop: SIGSTOP, until somebody continues it.
- full: from byte `at` on there is no space left on the device.
"""

import builtins
import errno
import io
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = 512
Tell = Callable[..., None]


@dataclass
class Change:
    """A change of a folder's names that the disk has not been asked to keep yet."""

    folder: str
    undo: Callable[[], Any]


@dataclass
class Disk:
    root: str
    kind: str
    at: int
    seed: int
    tell: Tell
    count: int = 0
    written: int = 0
    changes: list[Change] = field(default_factory=list)
    dirty: set[int] = field(default_factory=set)
    lock: Any = field(default_factory=threading.RLock)

    def install(self) -> None:
        self.real = {name: getattr(os, name) for name in ("open", "fsync", "replace", "rename", "mkdir", "unlink", "remove")}
        self.real_open = io.open
        io.open = builtins.open = self.open_file
        os.open, os.fsync, os.mkdir = self.open, self.fsync, self.mkdir
        os.replace = os.rename = self.replace
        os.unlink = os.remove = self.unlink

    def holds(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and f"{os.fspath(path)}/".startswith(self.root)

    # -- boundaries ------------------------------------------------------------------------------------------------------

    def step(self, what: str) -> None:
        """One boundary; the fault strikes if it is the chosen one."""
        with self.lock:
            self.count += 1
            if self.count != self.at or self.kind == "full":
                return
            self.tell(fault=f"{self.kind} at boundary {self.count}, {what}")
            match self.kind:
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "power":
                    self._cut(random.Random(self.seed))
                    os.kill(os.getpid(), signal.SIGKILL)
                case "interrupt":
                    raise KeyboardInterrupt
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)

    def room(self, size: int) -> int:
        """How many of `size` bytes still fit."""
        return max(0, min(size, self.at - self.written)) if self.kind == "full" else size

    # -- what stands in for the calls of the system ----------------------------------------------------------------------

    def open_file(self, file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        if "b" not in mode or not set(mode) & set("wax+") or not self.holds(file):
            return self.real_open(file, mode, *args, **named)
        return io.BufferedWriter(self._created(file, lambda: _File(file, mode, self)))

    def open(self, path: Any, flags: int, *args: Any, **named: Any) -> int:
        if not flags & os.O_CREAT or not self.holds(path):
            return self.real["open"](path, flags, *args, **named)
        return self._created(path, lambda: self.real["open"](path, flags, *args, **named))

    def _created(self, path: Any, create: Callable[[], Any]) -> Any:
        path, new = os.fspath(path), not os.path.exists(path)
        self.step(f"before open {path}")
        made = create()
        self.dirty.add(os.stat(path).st_ino)
        if new:
            self._change(path, lambda: Path(path).unlink(missing_ok=True))
        self.step(f"after open {path}")
        return made

    def fsync(self, handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if not self.holds(path):
            return self.real["fsync"](handle)
        self.step(f"before fsync {path}")
        self.real["fsync"](handle)
        self.dirty.discard(os.fstat(handle).st_ino)
        self.changes = [change for change in self.changes if change.folder != path]
        self.step(f"after fsync {path}")

    def replace(self, source: Any, target: Any, **named: Any) -> None:
        if not self.holds(target):
            return self.real["replace"](source, target, **named)
        source, target = os.fspath(source), os.fspath(target)
        old = _content(target)
        self.step(f"before rename {target}")
        self.real["replace"](source, target, **named)
        self._change(target, lambda: self._put_back(source, target, old))
        self.step(f"after rename {target}")

    def _put_back(self, source: str, target: str, old: bytes | None) -> None:
        if os.path.exists(target):
            self.real["replace"](target, source)
        if old is not None:
            _restore(target, old)

    def mkdir(self, path: Any, *args: Any, **named: Any) -> None:
        if not self.holds(path):
            return self.real["mkdir"](path, *args, **named)
        self.step(f"before mkdir {path}")
        self.real["mkdir"](path, *args, **named)
        self._change(os.fspath(path), lambda: shutil.rmtree(path, ignore_errors=True))
        self.step(f"after mkdir {path}")

    def unlink(self, path: Any, **named: Any) -> None:
        if not self.holds(path) or not os.path.exists(path):
            return self.real["unlink"](path, **named)
        path, old = os.fspath(path), _content(os.fspath(path))
        self.step(f"before unlink {path}")
        self.real["unlink"](path, **named)
        self._change(path, lambda: _restore(path, old))
        self.step(f"after unlink {path}")

    # -- a power cut -----------------------------------------------------------------------------------------------------

    def _change(self, path: str, undo: Callable[[], Any]) -> None:
        self.changes.append(Change(os.path.dirname(path), undo))

    def _cut(self, rng: random.Random) -> None:
        """A folder keeps its changes in their order: what is lost is an end of them, of each folder its own."""
        io.open = builtins.open = self.real_open
        for name, call in self.real.items():
            setattr(os, name, call)
        kept = {folder: rng.randint(0, len(self._of(folder))) for folder in sorted({each.folder for each in self.changes})}
        lost = {id(change) for folder, count in kept.items() for change in self._of(folder)[count:]}
        for change in reversed(self.changes):
            if id(change) in lost:
                change.undo()
        for path in sorted(Path(self.root).rglob("*")):
            if path.is_file() and path.stat().st_ino in self.dirty:
                path.write_bytes(_torn(path.read_bytes(), rng))

    def _of(self, folder: str) -> list[Change]:
        return [change for change in self.changes if change.folder == folder]


class _File(io.FileIO):
    """A file that is written in two halves, with a boundary before, between and after."""

    def __init__(self, path: Any, mode: str, disk: Disk):
        super().__init__(path, mode)
        self.disk = disk

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        for name, part in (("before", data[: len(data) // 2]), ("amid", data[len(data) // 2 :])):
            self.disk.step(f"{name} write {self.name}")
            self._write(part)
        self.disk.dirty.add(os.fstat(self.fileno()).st_ino)
        self.disk.step(f"after write {self.name}")
        return len(data)

    def _write(self, part: memoryview) -> None:
        fits = self.disk.room(len(part))
        self.disk.written += fits
        at = 0
        while at < fits:
            at += super().write(part[at:fits])
        if fits < len(part):
            self.disk.tell(fault=f"full at byte {self.disk.at}, {self.name}")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)


def _torn(data: bytes, rng: random.Random) -> bytes:
    cut, hole = rng.randint(0, len(data)), rng.randint(0, len(data) // PAGE) * PAGE
    zeros = bytes(min(PAGE, len(data) - hole))
    return rng.choice([data, b"", data[:cut], bytes(len(data)), data[:hole] + zeros + data[hole + len(zeros) :]])


def _content(path: str) -> bytes | None:
    return Path(path).read_bytes() if os.path.isfile(path) else None


def _restore(path: str, data: bytes | None) -> None:
    if data is not None and os.path.isdir(os.path.dirname(path)):
        Path(path).write_bytes(data)
