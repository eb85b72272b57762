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
_NO_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory"),
    *("alloc_failed", "allocation_failed"),  # of cuBLAS and of cuDNN
)
# Of cuSOLVER that a kernel failed is not among these: torch has it so that a matrix with NaN may be the reason.
_DEVICE_LOST = (
    *("cuda error", "cuda unknown error", "cuda driver", "nvidia driver", "no cuda gpus", "nccl error", "nvml"),
    *("status_not_initialized", "status_internal", "status_mapping_error", "status_arch_mismatch"),  # any library of CUDA's
    *("cudnn_status_execution", "cublas_status_execution"),
    "no space left on device",
)
# What s3fs, and fsspec over HTTP, let through of the libraries below them, which need not be there: known by name.
_NETWORK = {
    *("botocore.exceptions.ConnectionError", "botocore.exceptions.HTTPClientError", "botocore.exceptions.ClientError"),
    "botocore.exceptions.IncompleteReadError",
    *("aiohttp.client_exceptions.ClientConnectionError", "aiohttp.client_exceptions.ClientPayloadError"),
    "aiohttp.client_exceptions.ClientResponseError",
    *("urllib3.exceptions.ProtocolError", "urllib3.exceptions.TimeoutError", "http.client.IncompleteRead"),
}


def isolate(items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]) -> list[Result | BaseException]:
    """`work(items)`; where it fails, the exception of each guilty item in its place, and of all others what came of them.

    Of a failing batch the left half is tried. If it passes, the fault is in the right; if it fails, the right is put aside.
    When two are left, the first is tried together with all that was put aside. If these pass, the second is tried alone; if
    not, the second takes the place of the first, which is guilty if these pass. So one guilty item among n costs log2(n) + 1
    calls more, wherever it stands. With several, both may fail in company; they and what was put aside are then tried apart,
    three calls more for each guilty item but one. Memory that ran out says nothing of any item: then both halves are tried,
    and only an item that failed alone is guilty.

    Nobody is named because others passed. Whoever is named failed alone, or in three groups, the last of which passes with
    another in its place. So a fault of two items together, or of more than so many at once, condemns none. What remains is
    chance: it condemns an item that it strikes alone, or three times in those groups.
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
        """Try a group; where it fails, halve it down to who may be guilty, and let wait what that does not settle."""
        error, aside = self.attempt(group), []
        while error and len(group) > 1:
            left, right = group[: len(group) // 2], group[len(group) // 2 :]
            if error_class(error) == "capacity":
                self.waiting += [right, left]
                break
            if aside and len(group) == 2:
                self.decide(group[0], group[1], aside)
                return
            if error_of_left := self.attempt(left):
                group, error, aside = left, error_of_left, [*right, *aside]
            elif len(group) == 2:
                self.waiting.append(right)
                break
            else:
                group = right
        if error and len(group) == 1:
            self.made[group[0]] = error
        if aside:
            self.waiting.append(aside)

    def decide(self, first: int, second: int, aside: Sequence[int]) -> None:
        """Which of the last two it is, if nothing that was put aside is guilty as well."""
        error = self.attempt([first, *aside])
        if error is None:
            self.waiting.append([second])
        elif error_class(error) == "capacity" or self.attempt([second, *aside]):
            self.waiting += [aside, [second], [first]]
        else:
            self.made[first] = error

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
    if device_lost or isinstance(error, OSError) or type(error).__name__ == "AcceleratorError" or _of_the_network(error):
        return "infra"
    return "code"


def _of_the_network(error: BaseException) -> bool:
    return not _NETWORK.isdisjoint(f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__)


def row_error_of(error: BaseException) -> str:
    """The line that a row carries which failed with `error`."""
    return row_error(error_class(error), error)
