"""Waiting for other processes, and looking at them (Linux)."""

import time
from collections.abc import Callable
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.002


def until(what: Callable[[], bool], seconds: float = 120) -> None:
    """Come back when it is so."""
    last = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < last, "it did not happen in time"
        time.sleep(SECONDS_BETWEEN_LOOKS)


def below(pid: int) -> dict[int, str]:
    """Command line by process id of the living descendants of `pid`."""
    parents = {int(path.name): _parent(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found, newest = set[int](), {pid}
    while newest:
        newest = {child for child, parent in parents.items() if parent in newest} - found
        found |= newest
    return {each: line for each in found if (line := _read(each, "cmdline").replace("\0", " "))}


def stopped(pid: int) -> bool:
    return _state(pid) == "T"


def ended(pid: int) -> bool:
    return _state(pid) in ("", "Z")


def _state(pid: int) -> str:
    return _stat(pid)[0]


def _parent(pid: int) -> int:
    return int(_stat(pid)[1] or 0)


def _stat(pid: int) -> list[str]:
    """State and parent, empty for a process that is gone."""
    return (_read(pid, "stat").rpartition(")")[2].split() or ["", ""])[:2]


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
