"""Which rows of a failing batch are to blame, and of which class their failures are.

data        the row's own: a picture that cannot be read, a feature that is not finite
capacity    memory ran out, though the row stood alone
code        anything else that came back as an error
infra       the device, the driver, the network or the store: never a row's fault, and never caught here. The shard
            fails as a whole and goes to another worker
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from schemas.errors import DataError, NonFinite
from schemas.row_errors import ErrorClass
from stages.base import row_error

Item = TypeVar("Item")
Result = TypeVar("Result")

_ROWS_FAULTS = (DataError, NonFinite, RuntimeError, ValueError, MemoryError)
# What torch and the libraries under it say. An AcceleratorError is what it makes of an error of the CUDA runtime.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
_DEVICE_LOST = ("cuda error", "cuda driver error", "cudnn_status_internal", "cudnn_status_execution", "nccl error")


def isolate(items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]) -> list[Result | BaseException]:
    """`work(items)`; where it fails, the exception of each guilty item in its place, and of all others what came of them.

    Of a failing batch the left half is tried. If it passes, the fault is in the right; if it fails, the right is put aside,
    and all that was put aside is tried again in one go. So one guilty item among n costs log2(n) + 1 calls more, wherever it
    stands. Memory that ran out says nothing of any item: then both halves are tried, and only an item that failed alone is
    guilty.
    """
    search = _Search(items, work, [range(len(items))] if items else [])
    while search.waiting:
        search.narrow(search.waiting.pop())
    return [search.made[index] for index in range(len(items))]


@dataclass
class _Search(Generic[Item, Result]):
    """Groups of items, by their indices, that wait to be tried, and what has come of the items so far."""

    items: Sequence[Item]
    work: Callable[[Sequence[Item]], list[Result]]
    waiting: list[Sequence[int]]
    made: dict[int, Result | BaseException] = field(default_factory=dict)

    def narrow(self, group: Sequence[int]) -> None:
        """Try a group; where it fails, name one that is guilty and let the rest wait, or let its halves wait."""
        error, aside = self.attempt(group), []
        while error and len(group) > 1:
            left, right = group[: len(group) // 2], group[len(group) // 2 :]
            if error_class(error) == "capacity":
                self.waiting += [right, left]
                break
            if error_of_left := self.attempt(left):
                group, error, aside = left, error_of_left, [*right, *aside]
            else:
                group = right
        if error and len(group) == 1:
            self.made[group[0]] = error
        if aside:
            self.waiting.append(aside)

    def attempt(self, group: Sequence[int]) -> BaseException | None:
        try:
            self.made |= zip(group, self.work([self.items[index] for index in group]), strict=True)
        except _ROWS_FAULTS as error:
            if error_class(error) == "infra":
                raise
            traceback.clear_frames(error.__traceback__)  # what the failed call holds would be missing to the next
            return error
        return None


def error_class(error: BaseException) -> ErrorClass:
    if isinstance(error, DataError | NonFinite):
        return "data"
    text = str(error).lower()
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(sign in text for sign in _NO_MEMORY)):
        return "capacity"
    device_lost = isinstance(error, RuntimeError) and any(sign in text for sign in _DEVICE_LOST)
    if device_lost or isinstance(error, OSError) or type(error).__name__ == "AcceleratorError":
        return "infra"
    return "code"


def row_error_of(error: BaseException) -> str:
    """The line that a row carries which failed with `error`."""
    return row_error(error_class(error), error)
