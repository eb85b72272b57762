"""A driver in a process of its own, on a disk, a store or a clock that fails as its `Job` says.

`python -m tests.chaos.driver` waits for jobs, a line each, and forks for every one: what a job costs is its work, and a job
that is killed is a process that is killed. It prints the process id, then how the process ended. With a job as its argument
it carries that out itself. A job tells what happens in a file, a line of JSON each: `fault`, `done` shards, `error`, `ended`.
"""

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from schemas.artifact import Artifact
from schemas.errors import SailyardError
from schemas.storage import Folder
from stages.base import Resources
from tests.chaos import store, world
from tests.chaos.disk import Disk
from tests.chaos.weak import WeakArtifact

DAY = 86400.0
EXPECTED = (SailyardError, OSError, KeyboardInterrupt)
DISK = ("kill", "power", "interrupt", "stop", "full")


@dataclass(frozen=True)
class Job:
    """`url`: the workspace. `told`: the file in which it tells what happens. `at`: the boundary, byte or size of `kind`; for
    a `clock`, the days by which it jumps."""

    url: str
    images: str
    told: str
    kind: str = "calm"
    at: float = 0
    seed: int = 0
    rate: float = 0.25
    pending: str = ""
    format: str = "parquet"
    weak: bool = False
    executor: str = "local"
    workers: int = 1

    def line(self) -> str:
        return json.dumps(asdict(self))


def output_of(job: Job, url: str = "") -> Artifact:
    """The artifact that the job makes, or that of the same identity elsewhere."""
    images, stage = Artifact.sealed(Folder(job.images), "images"), world.Bright(format=job.format)  # type: ignore[arg-type]
    return world.output(Folder(url or job.url).child("segments"), images, stage, WeakArtifact if job.weak else Artifact)


def carry_out(job: Job) -> None:
    """Do what a driver does, under the job's fault, and tell."""
    store.register()
    images, output = Artifact.sealed(Folder(job.images), "images"), output_of(job)
    resources = Resources(executor=job.executor, workers=job.workers)  # type: ignore[arg-type]
    tell = _teller(job.told)
    step = _install(job, tell)
    try:
        world.drive(world.work(images, output, resources), lambda done, *_, **__: tell(done=done))
        tell(ended=True)
        step("the end")
    except EXPECTED as error:
        tell(error=f"{type(error).__name__}: {error}")
    except BaseException:
        tell(crash=traceback.format_exc())


def _teller(path: str) -> Callable[..., None]:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return lambda **said: _said(handle, said)


def _said(handle: int, said: dict[str, Any]) -> None:
    os.write(handle, json.dumps(said).encode() + b"\n")


def _install(job: Job, tell: Callable[..., None]) -> Callable[[str], None]:
    """Put the fault in its place; returns what tells a disk that a boundary is reached."""
    if job.url.startswith("chaos://"):
        weather = store.Weather(job.kind, job.seed, job.rate, int(job.at) or 1 << 60, job.pending, tell)
        store.ChaosFileSystem.weather = weather
    elif job.kind in DISK:
        disk = Disk(f"{job.url}/", job.kind, int(job.at), job.seed, tell)
        disk.install()
        return disk.step
    elif job.kind == "quota":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(job.at), int(job.at)))
        tell(fault=f"no file of more than {job.at} bytes")
    elif job.kind == "clock":
        now, step = time.time, job.at * DAY
        time.time = lambda: now() + step
        tell(fault=f"a clock that is {job.at} days ahead")
    return lambda what: None


def serve() -> None:
    world.warm()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            carry_out(Job(**json.loads(line)))
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    carry_out(Job(**json.loads(sys.argv[1]))) if len(sys.argv) > 1 else serve()
