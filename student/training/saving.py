"""Checkpoints beside the training: the loop copies its tensors and goes on, another thread writes the copies.

One is under way at a time. A second one waits for it, and hears of what went wrong with it.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import torch
from torch import Tensor

Copies = dict[str, Tensor]


class Saver:
    """Copies tensors at once and gives the copies to a function in another thread. Leaving its `with` block ends the thread,
    when it is done with what it has begun."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._copies: Copies = {}

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)

    def save(self, tensors: Iterable[tuple[str, Tensor]], write: Callable[[Copies], None]) -> None:
        """Begin `write(copies)` and return; raises what the last write raised. The tensors may change once this returns, and
        the memory of the copies is used again by the next call."""
        self.settle()
        self._copies = {name: _copy(tensor, self._copies.get(name)) for name, tensor in tensors}
        copied = torch.cuda.Event() if torch.cuda.is_initialized() else None
        if copied:
            copied.record()
        self._under_way = self._pool.submit(_write, write, self._copies, copied)

    def settle(self) -> None:
        """Return when nothing is under way; raises what the last write raised."""
        under_way, self._under_way = self._under_way, None
        if under_way:
            under_way.result()


def _write(write: Callable[[Copies], None], copies: Copies, copied: "torch.cuda.Event | None") -> None:
    if copied:
        copied.synchronize()
    write(copies)


def _copy(tensor: Tensor, into: Tensor | None) -> Tensor:
    """On the CPU; from a GPU into pinned memory, of which the GPU fills its own share when it gets there."""
    if into is None or into.shape != tensor.shape or into.dtype != tensor.dtype:
        into = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return into.copy_(tensor, non_blocking=tensor.is_cuda)
