"""Runs a MapStage over the shards it still lacks: in this process, or on Ray actors.

Rows never pass through the driver: a worker reads its shard, publishes its shard, and returns a `ShardResult`. A worker that
dies costs the shard it held; another takes that shard up, until it has failed `attempts` times.
"""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from schemas.artifact import Artifact
from schemas.errors import SailyardError, StageFailed
from stages.base import Inputs, MapStage, Outcome, Progress, Resources, ShardResult, judge, make_shard, row_error

OWN = "sailyard-own"  # the namespace by which a Ray that `start_ray` started is told from one that it joined or found


@dataclass(frozen=True)
class Work:
    """All that a worker must know to make a shard of `output`."""

    stage: MapStage
    inputs: Inputs
    whole: Inputs
    output: Artifact
    resources: Resources

    def open(self) -> Callable[[int], ShardResult]:
        function = self.stage.open(self.resources, self.whole)
        return lambda number: make_shard(function, self.inputs, self.output, number)


def run_map(work: Work, progress: Progress) -> Outcome:
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


def _in_process(work: Work, numbers: list[int]) -> Iterator[ShardResult]:
    yield from map(work.open(), numbers)


class _Worker:
    """The actor: opens the stage with its first shard, then makes one shard after the other."""

    make_shard: Callable[[int], ShardResult] | None = None

    def make(self, work: Work, number: int) -> ShardResult:
        self.make_shard = self.make_shard or work.open()
        return self.make_shard(number)


def _on_ray(work: Work, numbers: list[int]) -> Iterator[ShardResult]:
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
            ray.kill(worker)


@dataclass
class _Fleet:
    """Keeps one shard in flight per worker that has started, replaces the dead, and gives a lost shard to the next that is
    free. A worker for which the cluster has no room gets none, and holds nobody up."""

    work: Any
    spawn: Callable[[], Any]
    waiting: list[int]
    attempts: int
    workers: list[Any] = field(default_factory=list)
    idle: list[Any] = field(default_factory=list)
    lost: dict[int, int] = field(default_factory=dict)
    flying: dict[Any, tuple[Any, int | None]] = field(default_factory=dict)

    def run(self, count: int) -> Iterator[ShardResult]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        missing = len(self.waiting)
        for _ in range(count):
            self._hire()
        while missing:
            (ready, *_), _ = ray.wait(list(self.flying), num_returns=1)
            worker, number = self.flying.pop(ready)
            try:
                result = ray.get(ready)
            except RayTaskError as error:
                raise _cause(error, number) from None
            except RayError as error:  # the worker died, its node did, or memory ran out: each is a class of its own
                self._replace(worker, number, error)
            else:
                if number is not None:
                    missing -= 1
                    yield result
                self._send(worker)

    def _hire(self) -> None:
        """The first call of a worker returns once it has started."""
        worker = self.spawn()
        self.workers.append(worker)
        self.flying[worker.__ray_ready__.remote()] = worker, None

    def _send(self, worker: Any) -> None:
        if self.waiting:
            number = self.waiting.pop()
            self.flying[worker.make.remote(self.work, number)] = worker, number
        else:
            self.idle.append(worker)

    def _replace(self, dead: Any, number: int | None, error: Exception) -> None:
        self.workers.remove(dead)
        if number is not None:
            self.waiting.append(number)
        if self.waiting:
            self._count(self.waiting[-1], error)
            if self.idle:
                self._send(self.idle.pop())
            else:
                self._hire()

    def _count(self, number: int, error: Exception) -> None:
        """A worker that died before it had a shard is counted against the one that it would have been given."""
        self.lost[number] = self.lost.get(number, 0) + 1
        if self.lost[number] >= self.attempts:
            what = f"shard {number} lost its worker {self.lost[number]} times: {row_error('infra', error)}"
            raise StageFailed(what, remedy="Look for memory exhaustion, or lower resources.batch or resources.workers.")


def _cause(error: Any, number: int | None) -> Exception:
    """Our own errors come back as themselves; anything else is a fault in the code, named with its shard."""
    if isinstance(error.cause, SailyardError):
        return error.cause
    return StageFailed(f"shard {number}: {row_error('code', error.cause)}", remedy="Run again with --traceback.")


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
        what = f"no Ray cluster could be joined: {row_error('infra', error)}"
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
