"""Made by other threads before it is wanted."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
MadeT = TypeVar("MadeT")


def ahead(make: Callable[[ItemT], MadeT], items: Iterable[ItemT], *, depth: int = 2, threads: int = 1) -> Generator[MadeT]:
    """`make(item)` for each item in turn, made by other threads up to `depth` items early.

    What `make` raises is raised here, in its turn. Closing the iterator stops the threads.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    waiting: deque[Future[MadeT]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
