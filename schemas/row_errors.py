"""RowError: what the `error` column of a failed row says, as one line that can be read back.

    data: DataError: cut short after 17 bytes [attempt 2, trace 1a2b3c4d]

`trace` is a digest of the way through the code on which the row failed: rows with one trace have one fault. A line without
brackets, as whoever knows no way through the code writes it, was the first attempt.
"""

import hashlib
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

ErrorClass = Literal["data", "infra", "capacity", "code"]
_LONGEST = 500
_LINE = re.compile(
    rf"(?P<kind>{'|'.join(get_args(ErrorClass))}): (?P<message>.*?)"
    r"(?: \[attempt (?P<attempts>[0-9]+)(?:, trace (?P<trace>[0-9a-f]{8}))?\])?",
    re.DOTALL,
)


@dataclass(frozen=True)
class RowError:
    """`attempts` counts the tries that failed, the last one included."""

    kind: ErrorClass
    message: str
    attempts: int = 1
    trace: str = ""

    def __str__(self) -> str:
        trace = f", trace {self.trace}" if self.trace else ""
        told = f" [attempt {self.attempts}{trace}]" if trace or self.attempts > 1 else ""
        return f"{self.kind}: {self.message}{told}"

    @classmethod
    def of(cls, kind: ErrorClass, error: BaseException | str) -> "RowError":
        """One line of at most 500 characters, whatever the exception has to say."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        trace = "" if isinstance(error, str) else trace_digest(error.__traceback__)
        return cls(kind, " ".join(text.split())[:_LONGEST], trace=trace)

    @classmethod
    def parse(cls, line: str) -> "RowError":
        """What `str` wrote. A line that nobody here has written is a fault of the code, in its own words."""
        found = _LINE.fullmatch(line)
        if not found:
            return cls("code", line)
        return cls(found["kind"], found["message"], int(found["attempts"] or 1), found["trace"] or "")  # type: ignore[arg-type]


def trace_digest(trace: TracebackType | None) -> str:
    """8 hex digits over file, function and text of every line on the way to the fault, so that neither the place of the code
    on the disk nor lines added above it matter; empty where there is no way."""
    frames = traceback.extract_tb(trace)
    if not frames:
        return ""
    lines = "\n".join(f"{Path(frame.filename).name}\0{frame.name}\0{frame.line}" for frame in frames)
    return hashlib.sha256(lines.encode()).hexdigest()[:8]
