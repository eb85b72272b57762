"""The shards of a stage one after the other in this process.

Where a deadline is set, each is made in a thread that can be left behind when it hangs. Else nothing stands between a shard and
whoever presses Ctrl-C, and one that stalls is told of.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Timer
from typing import Any

from schemas.artifact import Artifact
from schemas.errors import StageFailed
from stages.base import Make, ShardResult, ShardWork
from stages.deadline import Pulse, heard_by, process_name, stacks_log, write_stacks
from stages.patience import STALLED, Patience

InBackground = Callable[[Callable[[], Any]], Future[None]]


def in_turn(work: ShardWork, numbers: list[int], in_background: InBackground) -> Iterator[ShardResult]:
    """What became of each shard; `StageFailed` when no heartbeat comes for `resources.deadline_s`."""
    make, patience, deadline_s = work.open(), Patience(work.resources.deadline_s), work.resources.deadline_s
    for number in numbers:
        began = time.monotonic()
        with _alarm(number, patience):
            result = (
                make(number) if deadline_s is None else _in_time(Pulse(deadline_s), make, number, work.output, in_background)
            )
        patience.learn(time.monotonic() - began, 0.0)
        yield result


@contextmanager
def _alarm(number: int, patience: Patience) -> Iterator[None]:
    """Within the block, a shard that takes far longer than others is told of, once."""
    seconds = patience.of(STALLED)
    timer = Timer(seconds, patience.tell, (number, process_name(), seconds))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _in_time(pulse: Pulse, make: Make, number: int, output: Artifact, in_background: InBackground) -> ShardResult:
    made: list[ShardResult] = []
    pulse.start()
    with heard_by(pulse.beat):
        future = in_background(lambda: made.append(make(number)))
        while not wait([future], timeout=pulse.left).done:
            if not pulse.left:
                log = stacks_log(output.folder)
                write_stacks(log)
                what = f"shard {number} took longer than deadline_s = {pulse.allowed:g}"
                raise StageFailed(what, output.where, f"What it was doing is in {log}.")
    future.result()
    return made[0]
