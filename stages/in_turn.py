"""The shards of a stage one after the other in this process, in a thread that can be left behind where it hangs."""

import contextvars
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from schemas.errors import StageFailed
from stages.base import ShardResult, ShardWork
from stages.deadline import heard_by, process_name, stacks_log, write_stacks
from stages.patience import STALLED, Patience

InBackground = Callable[[Callable[[], Any]], Future[None]]
_LOOK_S = 0.5  # how often one looks after the shard


def in_turn(work: ShardWork, numbers: list[int], in_background: InBackground) -> Iterator[ShardResult]:
    """What became of each shard; `StageFailed` when no heartbeat comes for too long. One thread opens the stage and makes all
    shards, for libraries keep state by the thread; it makes none that was not asked for."""
    asked: SimpleQueue[int | None] = SimpleQueue()
    made: SimpleQueue[ShardResult | None] = SimpleQueue()
    context, patience = contextvars.copy_context(), Patience(work.resources.deadline_s)
    thread = in_background(lambda: context.run(_serve, work, asked, made))
    try:
        if made.get() is None:
            thread.result()
        for number in numbers:
            asked.put(number)
            result = _awaited(work, number, patience, made)
            if result is None:
                thread.result()
            else:
                yield result
    finally:
        asked.put(None)


def _serve(work: ShardWork, asked: "SimpleQueue[int | None]", made: "SimpleQueue[Any]") -> None:
    """True once the stage is open, each shard that is asked for, and None at the end, whatever that is."""
    try:
        make = work.open()
        made.put(True)
        while (number := asked.get()) is not None:
            made.put(make(number))
    finally:
        made.put(None)


def _awaited(work: ShardWork, number: int, patience: Patience, made: "SimpleQueue[ShardResult | None]") -> ShardResult | None:
    pulse, began, told = patience.pulse(), time.monotonic(), False
    pulse.start()
    with heard_by(pulse.beat):
        while True:
            try:
                result = made.get(timeout=min(pulse.left, _LOOK_S))
            except Empty:
                seconds = time.monotonic() - began
                if not pulse.left:
                    raise _silent(work, number, pulse.allowed) from None
                if not told and seconds > patience.of(STALLED):
                    told = True
                    patience.tell(number, process_name(), seconds)
                continue
            pulse.beat()
            patience.learn(time.monotonic() - began, pulse.longest)
            return result


def _silent(work: ShardWork, number: int, seconds: float) -> StageFailed:
    log = stacks_log(work.output.folder)
    write_stacks(log)
    what = f"shard {number} was silent for {seconds:.0f} s, which no sound work is"
    if work.resources.deadline_s is not None:
        what = f"shard {number} took longer than deadline_s = {work.resources.deadline_s:g}"
    return StageFailed(what, work.output.where, f"What it was doing is in {log}.")
