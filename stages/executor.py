"""Runs a MapStage over the shards it still lacks: in this process, or on Ray actors.

Rows never pass through the driver: a worker reads its shard, publishes its shard, and returns a `ShardResult`. A worker that
dies, or is silent for too long, costs the shard it held; another takes that shard up, until it has failed `attempts` times.
Such a shard is left for last: where its rows can be told apart, it is made without those that are to blame, and else the stage
fails with its name.
"""

import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemas.artifact import Artifact
from schemas.errors import SailyardError, StageFailed
from stages.base import Inputs, Make, MapStage, Outcome, Progress, Resources, ShardResult, ShardWork, row_error
from stages.culprits import Shards, culprits
from stages.deadline import Pulse, or_die, process_name, stacks_log
from stages.in_turn import in_turn
from stages.isolate import error_class
from stages.patience import SLOW, STALLED, Patience
from stages.tally import Tally

OWN = "sailyard-own"  # the namespace by which a Ray that `start_ray` started is told from one that it joined or found
_LOOK_S = 0.5  # how often one looks after the shards in flight
_HOPELESS = 10  # shards in a row that no worker could make: it is not theirs
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
        return Shards(self.stage.open(self.resources, self.whole), self.inputs, self.output)


def run_map(work: ShardWork, progress: Progress) -> Outcome:
    """Make every shard that the output still lacks; raises `StageFailed` when too many rows carry an error."""
    output, resources = work.output, work.resources
    found = output.found()
    missing = [number for number in range(output.shards) if number not in found]
    tally = Tally(output, progress, len(found), sum(p.rows for p in found.values()), sum(p.failed for p in found.values()))
    if missing:
        is_local = resources.executor == "local"
        for result in in_turn(work, missing, in_background) if is_local else _on_ray(work, missing):
            tally.add(result)
    return tally.outcome(resources.max_error_rate)


class _Worker:
    """The actor: opens the stage with its first shard, then makes one shard after the other."""

    make_shard: Make | None = None

    def hello(self, work: ShardWork) -> tuple[str, str]:
        """Who it is, and where it leaves its stacks."""
        return process_name(), str(stacks_log(work.output.folder))

    def make(self, work: ShardWork, number: int, pulse: Pulse) -> tuple[ShardResult, float]:
        """Shard `number`, and the longest silence in it."""
        self.make_shard = self.make_shard or work.open()
        with or_die(pulse, stacks_log(work.output.folder)):
            result = self.make_shard(number)
        return result, pulse.longest

    def apart(self, work: ShardWork, what: str, number: int, pulse: Pulse, *rest: Any) -> Any:
        """What `Shards.count`, `attempt` or `publish` says of a shard; 0 where its rows cannot be told apart."""
        self.make_shard = self.make_shard or work.open()
        if not isinstance(self.make_shard, Shards):
            return 0
        with or_die(pulse, stacks_log(work.output.folder)):
            return getattr(self.make_shard, what)(number, *rest)


def _on_ray(work: ShardWork, numbers: list[int]) -> Iterator[ShardResult]:
    import ray

    resources = work.resources
    start_ray(resources)
    count = min(resources.workers, len(numbers))
    options = {"num_cpus": resources.threads, "num_gpus": resources.gpus, "runtime_env": _threads(resources)}
    remote: Any = ray.remote(**options)(_Worker)
    fleet = _Fleet(ray.put(work), remote.remote, list(reversed(numbers)), resources.attempts, Patience(resources.deadline_s))
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
    is_blind: bool = False  # it was begun when nobody knew how long a silence may be
    since: float = field(default_factory=time.monotonic)
    told: bool = False
    given_up: bool = False

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
    patience: Patience
    workers: list[_Hired] = field(default_factory=list)
    idle: list[_Hired] = field(default_factory=list)
    lost: dict[int, int] = field(default_factory=dict)
    flying: dict[Any, _Flight] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    failed: dict[int, str] = field(default_factory=dict)  # those that nobody could make, and why
    deadly: set[int] = field(default_factory=set)  # those that a worker died of
    in_a_row: int = 0  # so many of them since one was made

    def run(self, count: int) -> Iterator[ShardResult]:
        import ray

        missing = len(self.waiting)
        for _ in range(count):
            self._hire()
        while len(self.done) + len(self.failed) < missing:
            ready, _ = ray.wait(list(self.flying), num_returns=1, timeout=_LOOK_S)
            for reference in ready:
                result = self._land(reference, self.flying.pop(reference))
                if result is not None:
                    yield result
            self._look()
        for number in sorted(self.deadly & self.failed.keys()):
            result = self._without_culprits(number)
            if result is not None:
                del self.failed[number]
                yield result
        if self.failed:
            raise self._failure()

    def _without_culprits(self, number: int) -> ShardResult | None:
        """The shard, its rows that take their worker with them left failed; None where these cannot be told, or are all."""
        try:
            count = self._apart("count", number)
            if count < 2:
                return None
            errors = culprits(count, lambda rows: self._apart("attempt", number, rows), self.attempts)
            return self._apart("publish", number, errors) if len(errors) < count else None
        except (MemoryError, RuntimeError, SailyardError) as error:
            _log.warning("shard %d could not be made without the rows that are to blame: %s", number, error)
            return None

    def _apart(self, what: str, number: int, *rest: Any) -> Any:
        """What a worker answers that has nothing else to do; MemoryError or RuntimeError where it died of it."""
        import ray
        from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

        if not self.idle:
            self.idle.append(_Hired(self.spawn()))
            self.workers.append(self.idle[-1])
        worker = self.idle[-1]
        try:
            worker.name, worker.log = ray.get(worker.actor.hello.remote(self.work))
            return ray.get(worker.actor.apart.remote(self.work, what, number, self.patience.pulse(), *rest))
        except RayTaskError as error:
            raise _cause(error, number) from None
        except RayError as error:
            self.workers.remove(self.idle.pop())
            kind = MemoryError if isinstance(error, OutOfMemoryError) else RuntimeError
            raise kind("it was silent for too long" if _read(worker.log) else type(error).__name__) from None

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
            self.deadly |= set() if flight.number is None else {flight.number}
            self._replace(flight, error)
            return None
        if flight.number is None:
            flight.worker.name, flight.worker.log = result
        elif flight.number not in self.done:
            first, silence = result
            self.done.add(flight.number)
            self.patience.learn(flight.seconds, silence)
            self.in_a_row = 0
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
            pulse = self.patience.pulse()
            self.flying[worker.actor.make.remote(self.work, number, pulse)] = _Flight(worker, number, not pulse.known)

    def _look(self) -> None:
        """Tell, once, of every shard that takes far too long, and let the idle help with those that take too long. A worker
        that began when nothing was known has no deadline of its own, and is given up from here."""
        import ray

        for flight in self.flying.values():
            if flight.number is not None and not flight.told and flight.seconds > self.patience.of(STALLED):
                flight.told = True
                self.patience.tell(flight.number, flight.worker.name, flight.seconds)
            if flight.is_blind and not flight.given_up and self.patience.is_over(flight.seconds):
                flight.given_up = True
                ray.kill(flight.worker.actor)
        while self.idle and (self.waiting or self._straggler() is not None):
            self._send(self.idle.pop())

    def _straggler(self) -> int | None:
        """The shard that has been in flight for too long with one worker alone, the longest first."""
        if not self.patience.took:
            return None
        patience, copies = self.patience.of(SLOW), Counter(flight.number for flight in self.flying.values())
        alone = [flight for flight in self.flying.values() if copies[flight.number] == 1 and flight.number not in self.done]
        slow = [flight for flight in alone if flight.number is not None and flight.seconds > patience]
        return max(slow, key=lambda flight: flight.seconds).number if slow else None

    def _replace(self, flight: _Flight, error: BaseException) -> None:
        dead, number = flight.worker, flight.number
        self.workers.remove(dead)
        reason = f"infra: {type(error).__name__}: {error}"
        if number is not None and (stacks := _read(dead.log)):
            _log.warning("shard %d took longer than its deadline; %s was doing this:\n%s", number, dead.name, stacks)
            reason = f"infra: it took longer than {self.patience.limit}. What it was doing is in {dead.log}."
        elif flight.given_up:
            reason = f"infra: it took longer than {self.patience.limit}, {flight.seconds:.0f} s."
        is_elsewhere = number in self.done.union(other.number for other in self.flying.values() if other.number is not None)
        if number is not None and not is_elsewhere:
            self.waiting.append(number)
        if self.waiting and not is_elsewhere:
            self._count(self.waiting[-1], " ".join(reason.split()))
        if self.waiting:
            if self.idle:
                self._send(self.idle.pop())
            else:
                self._hire()

    def _count(self, number: int, reason: str) -> None:
        """A worker that died before it had a shard is counted against the one that it would have been given."""
        self.lost[number] = self.lost.get(number, 0) + 1
        if self.lost[number] >= self.attempts:
            self.waiting.remove(number)
            self.failed[number] = f"shard {number} lost its worker {self.lost[number]} times: {reason[:500]}"
            self.in_a_row += 1
            if self.in_a_row == _HOPELESS:
                raise self._failure()

    def _failure(self) -> StageFailed:
        """Of all shards that were lost; the reasons of the first few."""
        names = "" if len(self.failed) == 1 else f"{len(self.failed)} shards were lost ({', '.join(map(str, self.failed))}): "
        remedy = "Look for memory exhaustion, or lower resources.batch or resources.workers. Shards that were made stay made."
        return StageFailed(names + "; ".join(list(self.failed.values())[:3]), remedy=remedy)


def _read(log: str) -> str:
    """What a worker has left there, if its machine shares a disk with this one."""
    try:
        return Path(log).read_text(errors="replace") if log else ""
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
