"""`chaos://<folder>`: an object store over a local folder, whose puts, reads and listings fail as its `Weather` says.

Whether a request is struck is drawn from (seed, request, name, how often it was asked): never from threads or time. A put is
otherwise atomic, as on every object store. Puts that were answered and cannot be seen yet wait in the folder `pending`,
outlive the process and land later: after some requests, or when `land` is called.

put-fails        nothing is stored, and the answer is an error        put-unanswered   stored, and the answer is an error
put-cut          a part is stored, and the answer is a success         put-flipped      one bit is another one; a success
put-twice        stored, and stored again later                       put-late         can be seen only later
put-reordered    can be seen only after later puts                    read-fails       the answer is an error
list-lags        names of the latest puts are left out of a listing   kill             SIGKILL before or after a put
full             past `room` bytes, nothing is stored and the answer is an error
"""

import errno
import json
import os
import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.spec import AbstractFileSystem

SILENT = ("put-cut", "put-flipped")
KINDS = (
    *("put-fails", "put-unanswered", *SILENT, "put-twice", "put-late", "put-reordered"),
    *("read-fails", "list-lags", "kill", "full"),
)
PATIENCE = {"put-late": 40, "put-twice": 15, "put-reordered": 4}


@dataclass
class Weather:
    """What befalls the requests of this process."""

    kind: str = "calm"
    seed: int = 0
    rate: float = 0.25
    room: int = 1 << 60
    pending: str = ""
    tell: Callable[..., None] = lambda **_: None
    asked: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    lock: Any = field(default_factory=threading.RLock)

    def draw(self, request: str, path: str) -> random.Random | None:
        """A generator for the fault that strikes this request; None where nothing does."""
        key = f"{self.seed}/{request}/{os.path.basename(path)}"
        self.asked[key] += 1
        rng = random.Random(f"{key}/{self.asked[key]}")
        return rng if rng.random() < self.rate else None

    def strikes(self, request: str, path: str) -> random.Random | None:
        if not self.kind.startswith(request):
            return None
        rng = self.draw(request, path)
        if rng:
            self.tell(fault=f"{self.kind} {path}")
        return rng


def land(pending: str, due: float = float("inf")) -> int:
    """Let the puts that wait and are due be seen; returns how many did."""
    waiting = sorted(Path(pending).glob("*.put"), key=lambda path: (int(path.name.split("-")[0]), path.name))
    landed = [path for path in waiting if int(path.name.split("-")[0]) <= due]
    for path in landed:
        head, _, data = path.read_bytes().partition(b"\n")
        _store(pending, json.loads(head), data)
        path.unlink()
    return len(landed)


def _store(scratch: str, path: str, data: bytes) -> None:
    """Stored whole or not at all: the store's own doing, which no fault of ours reaches."""
    beside = os.path.join(scratch, f"{os.getpid()}.{threading.get_ident()}.part")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(beside).write_bytes(data)
    os.replace(beside, path)


class ChaosFileSystem(AbstractFileSystem):
    protocol = "chaos"
    cachable = False
    weather: ClassVar[Weather] = Weather()

    def _asked(self) -> None:
        weather = self.weather
        with weather.lock:
            weather.requests += 1
            if weather.pending:
                land(weather.pending, weather.requests)

    # -- puts ------------------------------------------------------------------------------------------------------------

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self._asked()
        path, weather = self._strip_protocol(path), self.weather
        if weather.kind == "kill":
            self._put_and_die(path, value)
            return
        if weather.kind == "full":
            weather.room -= len(value)
            if weather.room < 0:
                weather.tell(fault=f"full {path}")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        rng = weather.strikes("put", path)
        if rng is None:
            _store(self.weather.pending, path, value)
        else:
            self._put_badly(path, value, rng)

    def _put_and_die(self, path: str, value: bytes) -> None:
        rng = self.weather.draw("put", path)
        if rng:
            self.weather.tell(fault=f"kill at the put of {path}")
            if rng.random() < 0.5:
                _store(self.weather.pending, path, value)
            os.kill(os.getpid(), signal.SIGKILL)
        _store(self.weather.pending, path, value)

    def _put_badly(self, path: str, value: bytes, rng: random.Random) -> None:
        match self.weather.kind:
            case "put-fails":
                raise ConnectionError(f"the store did not take {path}")
            case "put-unanswered":
                _store(self.weather.pending, path, value)
                raise ConnectionError(f"no answer to the put of {path}")
            case "put-cut":
                _store(self.weather.pending, path, value[: rng.randrange(len(value))])
            case "put-flipped":
                _store(self.weather.pending, path, flipped(value, rng.randrange(8 * len(value))))
            case "put-twice":
                _store(self.weather.pending, path, value)
                self._wait(path, value, rng)
            case "put-late" | "put-reordered":
                self._wait(path, value, rng)

    def _wait(self, path: str, value: bytes, rng: random.Random) -> None:
        """Of two that become due at one time, the later put may land first."""
        due = self.weather.requests + rng.randint(1, PATIENCE[self.weather.kind])
        name = f"{due:06}-{rng.randrange(1 << 30):08x}.put"
        _store(self.weather.pending, os.path.join(self.weather.pending, name), json.dumps(path).encode() + b"\n" + value)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._asked()
        for each in [path] if isinstance(path, str) else path:
            each = self._strip_protocol(each)
            shutil.rmtree(each) if os.path.isdir(each) else os.unlink(each)

    # -- gets ------------------------------------------------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self._asked()
        path = self._strip_protocol(path)
        if self.weather.strikes("read", path):
            raise ConnectionError(f"the store broke off while {path} was read")
        return Path(path).read_bytes()[start:end]

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self._asked()
        return open(self._strip_protocol(path), mode)

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        self._asked()
        path = self._strip_protocol(path)
        return _entry(path, os.stat(path))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        self._asked()
        path = self._strip_protocol(path)
        with os.scandir(path) as entries:
            found = [_entry(each.path, each.stat()) for each in entries]
        found = [each for each in found if each["type"] == "directory" or not self.weather.strikes("list", each["name"])]
        return found if detail else [each["name"] for each in found]


def _entry(path: str, stat: os.stat_result) -> dict[str, Any]:
    return {"name": path, "size": stat.st_size, "type": "directory" if os.path.isdir(path) else "file"}


def flipped(data: bytes, bit: int) -> bytes:
    """`data` with one bit another."""
    byte, mask = divmod(bit, 8)
    return data[:byte] + bytes([data[byte] ^ (1 << mask)]) + data[byte + 1 :]


def register() -> None:
    fsspec.register_implementation("chaos", ChaosFileSystem, clobber=True)
