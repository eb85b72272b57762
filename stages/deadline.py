"""A stage that stops in the middle: how long it may be silent, and what is left to read when it was for longer.

A stage says `heartbeat()` after each batch or row group. Where somebody watches, `deadline_s` starts anew with each shard and
each heartbeat; nobody does unless `resources.deadline_s` is set.
"""

import faulthandler
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.storage import Folder

_beat: Callable[[], None] | None = None


def heartbeat() -> None:
    """The stage lives: the time that its next batch or row group may take starts now."""
    if _beat is not None:
        _beat()


@contextmanager
def heard_by(beat: Callable[[], None]) -> Iterator[None]:
    """Within the block `beat` is called with every heartbeat of this process."""
    global _beat
    before, _beat = _beat, beat
    try:
        yield
    finally:
        _beat = before


@contextmanager
def or_die(seconds: float | None, log: Path) -> Iterator[None]:
    """Within the block, this process dies when no heartbeat comes for so long, whatever holds it up, and leaves the stacks of
    all its threads in `log`."""
    if seconds is None:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        start = lambda: faulthandler.dump_traceback_later(seconds, exit=True, file=file)  # noqa: E731
        start()
        try:
            with heard_by(start):
                yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            log.unlink(missing_ok=True)


class Pulse:
    """When the last heartbeat was."""

    def __init__(self) -> None:
        self.beat()

    def beat(self) -> None:
        self._last = time.monotonic()

    def left(self, seconds: float) -> float:
        return max(0.0, self._last + seconds - time.monotonic())


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
