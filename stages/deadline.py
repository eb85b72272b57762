"""A stage that stops in the middle: how long it may be silent, and what is left to read when it was for longer.

A stage says `heartbeat()` after each batch or row group, and its silence begins anew with each shard and each heartbeat. How
long it may last is `resources.deadline_s`; where that is not said, so much longer than any silence of late that no sound work
can reach it: `Pulse`.
"""

import faulthandler
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from schemas.storage import Folder

SURE_S = 1800.0  # no silence is too long before
_TIMES = 20  # the longest of late
_UNKNOWN_S = 86400.0  # while there was none to go by
_beat: Callable[[], object] | None = None


def heartbeat() -> None:
    """The stage lives: the time that its next batch or row group may take starts now."""
    if _beat is not None:
        _beat()


@contextmanager
def heard_by(beat: Callable[[], object]) -> Iterator[None]:
    """Within the block `beat` is called with every heartbeat of this process."""
    global _beat
    before, _beat = _beat, beat
    try:
        yield
    finally:
        _beat = before


@contextmanager
def or_die(pulse: "Pulse", log: Path) -> Iterator[None]:
    """Within the block, this process dies when no heartbeat comes for as long as `pulse` allows, whatever holds it up, and
    leaves the stacks of all its threads in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:

        def again() -> None:
            pulse.beat()
            faulthandler.dump_traceback_later(pulse.allowed, exit=True, file=file)

        pulse.start()
        faulthandler.dump_traceback_later(pulse.allowed, exit=True, file=file)
        try:
            with heard_by(again):
                yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            log.unlink(missing_ok=True)
            pulse.beat()


@dataclass
class Pulse:
    """The silences of a shard in work. `known` is the longest in shards that were made of late, 0 where there are none, and
    `longest` that of this one so far."""

    deadline_s: float | None = None
    known: float = 0.0
    longest: float = 0.0
    sure_s: float = field(default_factory=lambda: SURE_S)
    _last: float = 0.0

    def start(self) -> None:
        self._last = time.monotonic()

    def beat(self) -> None:
        self.longest = max(self.longest, time.monotonic() - self._last)
        self.start()

    @property
    def allowed(self) -> float:
        """The seconds that its next silence may take."""
        if self.deadline_s is not None:
            return self.deadline_s
        longest = max(self.known, self.longest)
        return max(self.sure_s, _TIMES * longest) if longest else _UNKNOWN_S

    @property
    def left(self) -> float:
        return max(0.0, self._last + self.allowed - time.monotonic())


def write_stacks(log: Path) -> None:
    """The stacks of all threads of this process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        faulthandler.dump_traceback(file, all_threads=True)


def stacks_log(output: Folder) -> Path:
    """Where this process leaves its stacks: beside the shards, until these are sealed; of a remote store, on this machine."""
    place = Path(output.path()) if output.is_local else Path(tempfile.gettempdir())
    return place / f"stacks-{process_name().replace(':', '-')}.txt"


def process_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
