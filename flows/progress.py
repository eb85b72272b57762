"""Meter: the progress of one step, as a line on stderr with rate and time left, and as a bar on its Prefect page.

The line is rewritten in place on a terminal and written anew, less often, into a log. The page is updated at most once a
second, whatever the step's pace, and a Prefect server that does not answer costs the picture, not the work.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from flows.words import duration

SECONDS_ON_TERMINAL, SECONDS_IN_LOG = 1.0, 10.0

Rows = Sequence[Mapping[str, Any]]


class Meter:
    """The `Progress` of one step. A change of unit or total begins a new count, as when a job goes on to its next part.

    draw: told percent and line, and where the step has curves their numbers so far, by step. hung: told of pictures; laid: of
    tables."""

    def __init__(
        self,
        name: str,
        draw: Callable[..., None],
        hung: Callable[[bytes, str], None] = lambda png, title: None,
        laid: Callable[[Rows, str], None] = lambda rows, line: None,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self.draw, self.hung, self.laid = name, draw, hung, laid
        self.out, self.clock = out or sys.stderr, clock
        self.pause = SECONDS_ON_TERMINAL if self.out.isatty() else SECONDS_IN_LOG
        self.part: tuple[str, int] = ("", 0)
        self.curves: dict[int, Mapping[str, float]] = {}
        self.start = (0, clock())
        self.shown = self.drawn = float("-inf")

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.out.isatty():
            self._write("\r\x1b[2K")

    def __call__(self, done: int, total: int, unit: str, note: str = "") -> None:
        now = self.clock()
        if self.part != (unit, total):
            self.part, self.start = (unit, total), (done, now)
        line = self._line(done, total, unit, note, now)
        last = done >= total
        if now - self.shown >= self.pause or last:
            self.shown = now
            self._write(f"\r\x1b[2K{line}" if self.out.isatty() else f"{line}\n")
        if now - self.drawn >= SECONDS_ON_TERMINAL or last:
            self.drawn = now
            self.draw(100 * done / max(total, 1), line, *([self.curves] if self.curves else []))

    def chart(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step, for its curves, beside those that it has."""
        self.curves[step] = {**self.curves.get(step, {}), **numbers}

    def hang(self, png: bytes, title: str) -> None:
        """A picture, under its title."""
        self.hung(png, title)

    def lay(self, rows: Rows, line: str) -> None:
        """A table, and in a line that stays what it says."""
        self.say(f"{self.name}: {line}")
        self.laid(rows, line)

    def say(self, line: str) -> None:
        """A line that stays."""
        self._write(f"\r\x1b[2K{line}\n" if self.out.isatty() else f"{line}\n")

    def _line(self, done: int, total: int, unit: str, note: str, now: float) -> str:
        first, began = self.start
        rate = (done - first) / (now - began) if done > first and now > began else 0.0
        left = [f"{duration((total - done) / rate)} left"] if rate and done < total else []
        pace = [f"{rate:.1f}/s", *left] if rate else []
        return " · ".join([f"{self.name}: {done}/{total} {unit}", *pace, *([note] if note else [])])

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()
