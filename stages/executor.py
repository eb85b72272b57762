"""Runs a MapStage over the shards it still lacks: in this process, or on Ray actors.

Rows never pass through the driver: a worker reads its shard, publishes its shard, and returns a `ShardResult`. A worker that
dies, or is silent for longer than `deadline_s`, costs the shard it held; another takes that shard up, until it has failed
`attempts` times.
"""

import logging
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from schemas.artifact import Artifact
from schemas.errors import SailyardError, StageFailed
from stages.base import (
    Inputs,
    Make,
    MapStage,
    Outcome,
    Progress,
    Resources,
    ShardResult,
    ShardWork,
    judge,
    make_shard,
    row_error,
)
from stages.deadline import Pulse, heard_by, or_die, process_name, stacks_log, write_stacks
from stages.isolate import error_class

OWN = "sailyard-own"  # the namespace by which a Ray that `start_ray` started is told from one that it joined or found
_LOOK_S = 0.5  # how often one looks after the shards in flight
_SLOW, _STALLED = 3, 10  # times the median: a shard is given to an idle worker too; an alarm is raised
_SOON_S, _UNKNOWN_S = 2.0, 600.0  # nothing is slow before; nor while no shard has shown how long they take
_RECENT = 101  # so many shards show it
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """All that a worker must know to make a shard of `output`."""

    stage: MapStage
    inputs: Inputs
    whole: Inputs
    output: Artifact
    resources: Resources

    def open(self) -> Make:
        function = self.stage.open(self.resources, self.whole)
        return lambda number: make_shard(function, self.inputs, self.output, number)


def run_map(work: ShardWork, progress: Progress) -> Outcome:
    """Make every shard that the output still lacks; raises `StageFailed` when too many rows carry an error."""
    output, resources = work.output, work.resources
    found = output.found()
    missing = [number for number in range(output.shards) if number not in found]
    tally = _Tally(output, progress, len(found), sum(p.rows for p in found.values()), sum(p.failed for p in found.values()))
    if missing:
        results = _in_process if resources.executor == "local" else _on_ray
        for result in results(work, missing):
            tally.add(result)
    return tally.outcome(resources.max_error_rate)


@dataclass
class _Tally:
    output: Artifact
    progress: Progress
    shards: int
    rows: int
    failed: int
    seconds: float = 0.0
    made: int = 0

    def add(self, result: ShardResult) -> None:
        self.shards += 1
        self.made += 1
        self.rows += result.rows
        self.failed += result.failed
        self.seconds += result.seconds
        self.progress(self.shards, self.output.shards, "shards", f"{self.rows} rows, {self.failed} failed")

    def outcome(self, max_error_rate: float) -> Outcome:
        lines = judge(self.output, max_error_rate)
        return Outcome({"seconds_of_work": round(self.seconds, 3), "shards_made": self.made}, lines)


def _in_process(work: ShardWork, numbers: list[int]) -> Iterator[ShardResult]:
    make, deadline = work.open(), work.resources.deadline_s
    for number in numbers:
        yield make(number) if deadline is None else _in_time(deadline, make, number, work.output)


def _in_time(deadline: float, make: Make, number: int, output: Artifact) -> ShardResult:
    """make(number), or `StageFailed` when no heartbeat comes for so long: what hangs is left behind in its thread."""
    made: list[ShardResult] = []
    pulse = Pulse()
    with heard_by(pulse.beat):
        future = in_background(lambda: made.append(make(number)))
        while not wait([future], timeout=pulse.left(deadline)).done:
            if not pulse.left(deadline):
                log = stacks_log(output.folder)
                write_stacks(log)
                raise StageFailed(f"shard {number} took longer than deadline_s = {deadline:g}", output.where, _look_into(log))
    future.result()
    return made[0]


def _look_into(log: Path | str) -> str:
    return f"What it was doing is in {log}."


class _Worker:
    """The actor: opens the stage with its first shard, then makes one shard after the other."""

    make_shard: Make | None = None

    def hello(self, work: ShardWork) -> tuple[str, str]:
        """Who it is, and where it leaves its stacks."""
        return process_name(), str(stacks_log(work.output.folder))

    def make(self, work: ShardWork, number: int) -> ShardResult:
        self.make_shard = self.make_shard or work.open()
        with or_die(work.resources.deadline_s, stacks_log(work.output.folder)):
            return self.make_shard(number)


def _on_ray(work: ShardWork, numbers: list[int]) -> Iterator[ShardResult]:
    import ray

    resources = work.resources
    start_ray(resources)
    count = min(resources.workers, len(numbers))
    options = {"num_cpus": resources.threads, "num_gpus": resources.gpus, "runtime_env": _threads(resources)}
    remote: Any = ray.remote(**options)(_Worker)
    fleet = _Fleet(ray.put(work), remote.remote, list(reversed(numbers)), resources.attempts)
    try:
        yield from fleet.run(count)
    finally:
        for worker in fleet.workers:
            ray.kill(worker.actor)


@dataclass(eq=False)
class _Hired:
    """A worker; its name and where it leaves its stacks are known once it has started."""

    actor: Any
    name: str = "a worker that has not started"
    log: str = ""


@dataclass
class _Flight:
    """A shard that a worker is at; without a number, a worker that is about to start."""

    worker: _Hired
    number: int | None
    since: float = field(default_factory=time.monotonic)
    told: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since


@dataclass
class _Fleet:
    """Keeps one shard in flight per worker that has started, replaces the dead, and gives a lost shard to the next that is
    free. A worker for which the cluster has no room gets none, and holds nobody up. Nor does one that is slow: when nothing
    waits any more, its shard is given to an idle worker too, and the first of the two counts."""

    work: Any
    spawn: Callable[[], Any]
    waiting: list[int]
    attempts: int
    workers: list[_Hired] = field(default_factory=list)
    idle: list[_Hired] = field(default_factory=list)
    lost: dict[int, int] = field(default_factory=dict)
    flying: dict[Any, _Flight] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    took: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def run(self, count: int) -> Iterator[ShardResult]:
        import ray

        missing = len(self.waiting)
        for _ in range(count):
            self._hire()
        while len(self.done) < missing:
            ready, _ = ray.wait(list(self.flying), num_returns=1, timeout=_LOOK_S)
            for reference in ready:
                result = self._land(reference, self.flying.pop(reference))
                if result is not None:
                    yield result
            self._look()

    def _land(self, reference: Any, flight: _Flight) -> Any:
        """What a call has come to: a shard, if it is the first of its number; and its worker goes on."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        first: Any = None
        result: Any = None
        try:
            result = ray.get(reference)
        except RayTaskError as error:
            if error_class(error.cause) == "infra":  # what it holds of the device or the network may be broken with it
                ray.kill(flight.worker.actor)
                self._replace(flight, error.cause)
                return None
            if flight.number not in self.done:
                raise _cause(error, flight.number) from None
        except RayError as error:  # the worker died, its node did, or memory ran out: each is a class of its own
            self._replace(flight, error)
            return None
        if flight.number is None:
            flight.worker.name, flight.worker.log = result
        elif flight.number not in self.done:
            first = result
            self.done.add(flight.number)
            self.took.append(flight.seconds)
        self._send(flight.worker)
        return first

    def _hire(self) -> None:
        """The first call of a worker returns once it has started."""
        worker = _Hired(self.spawn())
        self.workers.append(worker)
        self.flying[worker.actor.hello.remote(self.work)] = _Flight(worker, None)

    def _send(self, worker: _Hired) -> None:
        number = self.waiting.pop() if self.waiting else self._straggler()
        if number is None:
            self.idle.append(worker)
        else:
            self.flying[worker.actor.make.remote(self.work, number)] = _Flight(worker, number)

    def _look(self) -> None:
        """Tell, once, of every shard that takes far too long, and let the idle help with those that take too long."""
        patience = self._patience(_STALLED)
        for flight in self.flying.values():
            if flight.number is not None and not flight.told and flight.seconds > patience:
                flight.told = True
                since = time.strftime("%H:%M:%S", time.localtime(time.time() - flight.seconds))
                _log.warning(
                    "shard %d stalls: %s has been at it since %s, for %.0f s; others took %s",
                    *(flight.number, flight.worker.name, since, flight.seconds),
                    f"{median(self.took):.1f} s" if self.took else "no less so far",
                )
        while self.idle and (self.waiting or self._straggler() is not None):
            self._send(self.idle.pop())

    def _straggler(self) -> int | None:
        """The shard that has been in flight for too long with one worker alone, the longest first."""
        if not self.took:
            return None
        patience, copies = self._patience(_SLOW), Counter(flight.number for flight in self.flying.values())
        alone = [flight for flight in self.flying.values() if copies[flight.number] == 1 and flight.number not in self.done]
        slow = [flight for flight in alone if flight.number is not None and flight.seconds > patience]
        return max(slow, key=lambda flight: flight.seconds).number if slow else None

    def _patience(self, times: float) -> float:
        """So many times what a shard took of late; where no one knows, long enough for any."""
        return max(times * median(self.took), _SOON_S) if self.took else _UNKNOWN_S

    def _replace(self, flight: _Flight, error: BaseException) -> None:
        dead, number = flight.worker, flight.number
        self.workers.remove(dead)
        reason = f"infra: {type(error).__name__}: {error}"
        if number is not None and dead.log and (stacks := _read(dead.log)):
            _log.warning("shard %d took longer than its deadline; %s was doing this:\n%s", number, dead.name, stacks)
            reason = f"infra: it took longer than deadline_s. {_look_into(dead.log)}"
        is_elsewhere = number in self.done or any(other.number == number for other in self.flying.values())
        if number is not None and not is_elsewhere:
            self.waiting.append(number)
        if self.waiting:
            self._count(self.waiting[-1], " ".join(reason.split()))
            if self.idle:
                self._send(self.idle.pop())
            else:
                self._hire()

    def _count(self, number: int, reason: str) -> None:
        """A worker that died before it had a shard is counted against the one that it would have been given."""
        self.lost[number] = self.lost.get(number, 0) + 1
        if self.lost[number] >= self.attempts:
            what = f"shard {number} lost its worker {self.lost[number]} times: {reason[:500]}"
            raise StageFailed(what, remedy="Look for memory exhaustion, or lower resources.batch or resources.workers.")


def _read(log: str) -> str:
    """What a worker has left there, if its machine shares a disk with this one."""
    try:
        return Path(log).read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _cause(error: Any, number: int | None) -> Exception:
    """Our own errors come back as themselves; anything else is a fault in the code, named with its shard."""
    if isinstance(error.cause, SailyardError):
        return error.cause
    said = row_error("code", f"{type(error.cause).__name__}: {error.cause}")
    return StageFailed(f"shard {number}: {said}", remedy="Run again with --traceback.")


def _threads(resources: Resources) -> dict[str, Any]:
    """Every worker computes with the same number of threads, however many workers there are: sums keep their order."""
    return {"env_vars": {"OMP_NUM_THREADS": str(resources.threads)}}


def in_background(work: Callable[[], Any]) -> Future[None]:
    """Do the work in a thread that, unlike a pool's, may be left behind when the process ends."""
    future: Future[None] = Future()

    def settle() -> None:
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=settle, name="in-background", daemon=True).start()
    return future


def start_ray(resources: Resources) -> None:
    """Join the cluster at `ray_address`, or start one on this machine, unless this process is in one already that will do."""
    import ray

    if _too_small(resources):
        ray.shutdown()
    if ray.is_initialized():
        return
    address = resources.ray_address
    try:
        with _sigterm_kept():
            ray.init(
                address=address or "local",  # None would join whatever runs here
                namespace=None if address else OWN,
                num_cpus=None if address else max(resources.workers * resources.threads, _cores()),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
    except (ConnectionError, ValueError) as error:
        what = f"no Ray cluster could be joined: {row_error('infra', f'{type(error).__name__}: {error}')}"
        remedy = "Start it with `ray start --head`, or leave resources.ray_address out for one on this machine."
        raise StageFailed(what, address or "this machine", remedy) from error


def _too_small(resources: Resources) -> bool:
    """Whether an earlier step, with fewer workers, started the Ray that this process is in; one of others is never judged."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().namespace != OWN:
        return False
    return ray.cluster_resources().get("CPU", 0) < resources.workers * resources.threads


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; it belongs to whoever runs the stage: Prefect cancels by it. One that comes while Ray
    starts, as the exit that Ray makes of it, is passed on."""
    keep = signal.getsignal(signal.SIGTERM) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    except SystemExit:
        if keep:
            signal.signal(signal.SIGTERM, keep)
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        if keep:
            signal.signal(signal.SIGTERM, keep)


def _cores() -> int:
    import os

    return os.cpu_count() or 1
