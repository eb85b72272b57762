"""Items through a device: loaded ahead of it by other threads, kept behind it by the same, in order and in bounded memory.

    load     in a thread: an item -> what the device takes of it
    show     here: a few that were loaded, of one shape -> for each, what waits for the answer and gives it
    keep     in a thread: an item and its answer -> what is stored of it

What is shown together follows from the items alone and not from how fast a thread was. An item that cannot be loaded or kept
fails alone; those that cannot be shown together are isolated. No more than fourteen batches are on their way at once.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import AsyncResult, ThreadPool  # its threads may be left behind when the process ends
from typing import Any, Generic, TypeVar

from stages.deadline import heartbeat
from stages.isolate import isolate

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Answer = TypeVar("Answer")
Kept = TypeVar("Kept")

AHEAD = 2  # batches that are being loaded, or wait to be taken
UNFILLED = 8  # batches' worth of what waits for others of its shape


@dataclass(frozen=True)
class Pipeline(Generic[Item, Loaded, Answer, Kept]):
    """Called with items, it gives for each what was kept of it, or the exception that it failed with."""

    load: Callable[[Item], Loaded]
    shape: Callable[[Loaded], Hashable]
    show: Callable[[Sequence[Loaded]], list[Callable[[], Answer]]]
    keep: Callable[[Item, Answer], Kept]
    batch: int = 1
    threads: int = 1

    def __call__(self, items: Sequence[Item]) -> list[Kept | BaseException]:
        with ThreadPool(self.threads) as pool:
            run = _Run(self, items, pool, {}, deque())
            shown: deque[list[tuple[int, Callable[[], Answer]]]] = deque()
            for group in same_shape(run.loaded(), lambda pair: self.shape(pair[1]), self.batch, UNFILLED * self.batch):
                shown.append(run.show(group))
                if len(shown) > 1:  # while the last is waited for, the device has the next
                    run.keep(shown.popleft())
            for group in shown:
                run.keep(group)
            run.settle(0)
        return [run.made[index] for index in range(len(items))]


def same_shape(items: Iterable[Item], shape: Callable[[Item], Hashable], batch: int, most: int) -> Iterator[list[Item]]:
    """Groups of `batch` items of one shape, as they fill. When more than `most` items wait, the group first begun goes as it
    is: its shape is a rare one. At the end all do."""
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        group = waiting.setdefault(shape(item), [])
        group.append(item)
        if len(group) == batch:
            yield waiting.pop(shape(item))
        elif sum(map(len, waiting.values())) > most:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


@dataclass(frozen=True)
class _Run:
    """`made` has what items came to, by index; `keeping` what is still on its way there."""

    line: Pipeline[Any, Any, Any, Any]
    items: Sequence[Any]
    pool: ThreadPool
    made: dict[int, Any]
    keeping: deque[tuple[int, AsyncResult[Any]]]

    def loaded(self) -> Iterator[tuple[int, Any]]:
        """(index, loaded) of each item that can be, in order."""
        most, loading = AHEAD * max(self.line.batch, self.line.threads), deque[tuple[int, AsyncResult[Any]]]()
        for index, item in enumerate(self.items):
            loading.append((index, self.pool.apply_async(_alone, (self.line.load, item))))
            if len(loading) == most:
                yield from self._taken(loading)
        while loading:
            yield from self._taken(loading)

    def _taken(self, loading: deque[tuple[int, AsyncResult[Any]]]) -> list[tuple[int, Any]]:
        """The first of these, if it can be loaded."""
        index, result = loading.popleft()
        return self._good([(index, result.get())])

    def show(self, group: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """(index, what waits for the answer) of each that can be shown."""
        answers = isolate([loaded for _, loaded in group], self.line.show)
        return self._good([(index, answer) for (index, _), answer in zip(group, answers, strict=True)])

    def keep(self, shown: Sequence[tuple[int, Any]]) -> None:
        """Wait for the answers, and leave them to the threads; what these got a batch ago must be done."""
        for index, waiting in shown:
            self.keeping.append((index, self.pool.apply_async(_alone, (self.line.keep, self.items[index], waiting()))))
        heartbeat()
        self.settle(self.line.batch)

    def settle(self, most: int) -> None:
        """Wait until no more than `most` are on their way to be kept."""
        while len(self.keeping) > most:
            index, result = self.keeping.popleft()
            self.made[index] = result.get()

    def _good(self, pairs: Sequence[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """The pairs without an exception; of the others that is what they came to."""
        self.made.update((index, each) for index, each in pairs if isinstance(each, BaseException))
        return [(index, each) for index, each in pairs if not isinstance(each, BaseException)]


def _alone(work: Callable[..., Any], *item: Any) -> Any:
    """work(*item), or the exception that it is to blame for."""
    (made,) = isolate([item], lambda items: [work(*items[0])])
    return made
