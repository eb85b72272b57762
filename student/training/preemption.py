"""A notice to leave: SIGTERM or SIGUSR1, by which schedulers say that the machine will be taken away.

Training hears it, finishes its step, saves, and raises `Preempted`; run again, it goes on from that very step.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """While this is open, whether one of `SIGNALS` has come; it does nothing else. Signals reach a process' main thread alone:
    in another thread none is heard, and whoever has them there keeps them. One that the process ignores is left ignored."""
    heard = threading.Event()
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in SIGNALS} if is_main else {}
    taken = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}

    def note(number: int, frame: FrameType | None) -> None:
        heard.set()

    for number in taken:
        signal.signal(number, note)
    try:
        yield heard.is_set
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def pass_on() -> None:
    """Raise SIGTERM once more for whoever had it before, such as Prefect, which cancels by it, or the command line."""
    if threading.current_thread() is threading.main_thread() and callable(signal.getsignal(signal.SIGTERM)):
        signal.raise_signal(signal.SIGTERM)
