"""Waiting for something to happen in another process, and looking at processes (Linux)."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


def until(what: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer."""
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        if answer := what():
            return answer
        time.sleep(0.1)
    pytest.fail("it did not happen in time")


def children(pid: int) -> dict[int, str]:
    """Command line by process id of the living children of `pid`, whichever of its threads has started them."""
    pids: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it may end meanwhile
            pids += map(int, (thread / "children").read_text().split())
    lines: dict[int, str] = {}
    for child in pids:
        with suppress(OSError):
            lines[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return {child: line for child, line in lines.items() if line}


def descendants(pid: int) -> set[int]:
    """The living children of `pid`, their children, and so on."""
    below = set(children(pid))
    return below.union(*map(descendants, below))


def is_alive(pid: int) -> bool:
    return bool(Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/cmdline").read_bytes())
