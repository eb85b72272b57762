"""One life of an artifact: from nothing, through faults, until it is complete; and what was judged on the way.

A life is told by its kind and seed: `live("power", 17)` meets the same faults each time, but for those that another process
or the clock brings about (`two`, `clock` and those of Ray).
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from schemas.artifact import Artifact
from tests.chaos import judge, store
from tests.chaos.driver import Job, output_of
from tests.chaos.processes import below, ended, stopped, until

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.chaos.driver"]
FAULTY_RUNS = 6
RATES = {"read-fails": 0.03, "list-lags": 0.02}  # of all requests; there are many more of these than of puts
VICTIMS = {"driver": "", "worker": "ray::_Worker", "raylet": "raylet/raylet "}


@dataclass(frozen=True)
class Told:
    """What a job told of itself before it ended or died."""

    faults: list[str] = field(default_factory=list)
    done: int = 0
    error: str = ""
    crash: str = ""
    ended: bool = False

    @classmethod
    def by(cls, path: str) -> "Told":
        lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
        said: dict[str, Any] = {key: value for line in lines for key, value in line.items() if key != "fault"}
        return cls([line["fault"] for line in lines if "fault" in line], **said)


class Forks:
    """A process that carries out one job at a time, each in a fork of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(COMMAND, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, job: Job) -> int:
        """The process id of the job."""
        assert self.process.stdin is not None
        Path(job.told).unlink(missing_ok=True)
        self.process.stdin.write(job.line() + "\n")
        self.process.stdin.flush()
        return int(self._line())

    def wait(self, job: Job) -> Told:
        self._line()
        return Told.by(job.told)

    def run(self, job: Job) -> Told:
        self.start(job)
        return self.wait(job)

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def close(self) -> None:
        self.process.communicate()


@contextmanager
def forks(count: int) -> Iterator[list[Forks]]:
    every = [Forks() for _ in range(count)]
    try:
        yield every
    finally:
        for each in every:
            each.close()


@dataclass
class Verdict:
    """What a life came to."""

    kind: str
    seed: int
    runs: int = 0
    faults: list[str] = field(default_factory=list)
    orphans: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([f"life {self.kind}-{self.seed}:", *self.faults, "came to:", *self.wrong])


@dataclass
class Life:
    """A workspace under faults. `kept` holds the shards that counted when it was last judged."""

    job: Job
    truth: judge.Truth
    verdict: Verdict
    kept: set[int] = field(default_factory=set)

    @property
    def output(self) -> Artifact:
        """As it lies on the disk, or in the store behind its weather."""
        return output_of(self.job, self.job.url.removeprefix("chaos://"))

    @property
    def silent(self) -> bool:
        return self.job.kind in store.SILENT and self.job.url.startswith("chaos://")

    def judge(self, told: Told) -> None:
        """After a fault: what is claimed is so, what was done is still done, and nobody fell over."""
        if self.job.pending and told.ended:
            store.land(self.job.pending)
        wrong = judge.between_faults(self.output, self.truth, silent=self.silent)
        wrong += [f"the driver crashed: {told.crash}"] if told.crash else []
        if not self.silent:
            wrong += self._lost(told)
        self.verdict.runs += 1
        self.verdict.faults += told.faults
        self.verdict.wrong += [f"after run {self.verdict.runs}: {each}" for each in wrong]

    def _lost(self, told: Told) -> list[str]:
        counted = set(self.output.found())
        lost = [f"shard {number} was done and is lost" for number in sorted(self.kept - counted)]
        if told.done > len(counted) and not self.job.pending:
            lost.append(f"{told.done} shards were said to be done, {len(counted)} are")
        if told.ended and self.output.record() is None:
            lost.append("the driver said that all is done, and there is no record")
        self.kept = counted
        return lost

    def end(self, run: Callable[[Job], Told]) -> Verdict:
        """The weather clears: one more run ends as the unbroken one, after deleting what `verify` names."""
        if self.job.pending:
            store.land(self.job.pending)
        if self.silent:
            judge.heal(self.output)
        told = run(replace(self.job, kind="calm", executor="local"))
        self.verdict.wrong += [] if told.ended else [f"a run without faults does not end: {told.error}{told.crash}"]
        wrong, self.verdict.orphans = judge.in_the_end(self.output, self.truth)
        self.verdict.wrong += [f"in the end: {each}" for each in wrong]
        return self.verdict


@dataclass
class Lives:
    """Where lives are lived: `folder` for their workspaces, the pictures, the unbroken run of each format."""

    folder: Path
    images: str
    forks: list[Forks]
    truths: dict[tuple[str, bool], judge.Truth] = field(default_factory=dict)

    def begin(self, name: str, seed: int, *, weak: bool = False) -> Life:
        """An empty workspace and what its artifact shall be. Every other life makes an Arrow table."""
        form = "parquet" if weak or seed % 2 else "arrow"
        remote, kind = name.startswith("store-"), name.removeprefix("store-")
        where = self.folder / f"{name}-{seed}{'-weak' * weak}"
        for folder in ("workspace", "pending"):
            (where / folder).mkdir(parents=True)
        url = f"chaos://{where}/workspace" if remote else f"{where}/workspace"
        pending = f"{where}/pending" if remote else ""
        rate, told = RATES.get(kind, 0.25), f"{where}/told"
        job = Job(url, self.images, told, kind, seed=seed, rate=rate, format=form, weak=weak, pending=pending)
        return Life(job, self._truth(form, weak), Verdict(name, seed))

    def _truth(self, form: str, weak: bool) -> judge.Truth:
        if (form, weak) not in self.truths:
            where = self.folder / f"unbroken-{form}-{weak}"
            where.mkdir()
            job = Job(f"{where}/workspace", self.images, f"{where}/told", format=form, weak=weak)
            assert self.forks[0].run(job).ended
            self.truths[form, weak] = judge.Truth(output_of(job))
        return self.truths[form, weak]

    def close(self, life: Life) -> Verdict:
        verdict = life.end(self.forks[0].run)
        if not verdict.wrong:
            shutil.rmtree(Path(life.job.told).parent)
        return verdict

    # -- kinds of lives --------------------------------------------------------------------------------------------------

    def on_disk(self, kind: str, seed: int, *, weak: bool = False) -> Verdict:
        """Faults at boundaries, or at bytes, of the local disk, run after run."""
        life, rng = self.begin(kind, seed, weak=weak), random.Random(f"{kind}/{seed}")
        most = self._bytes(life) if kind in ("full", "quota") else 8 * life.output.shards
        least = most // 2 if kind == "quota" else 1  # what the driver tells has to fit
        for _ in range(FAULTY_RUNS):
            told = self.forks[0].run(replace(life.job, at=rng.randint(least, most), seed=rng.getrandbits(30)))
            life.judge(told)
            if told.ended:
                break
        return self.close(life)

    def _bytes(self, life: Life) -> int:
        sizes = list(map(len, life.truth.shards.values()))
        return sum(sizes) if life.job.kind == "full" else max(sizes)

    def at_boundary(self, kind: str, at: int, *, weak: bool = False) -> Verdict:
        """One fault at one boundary of a run from nothing. The verdict has no fault where there is no such boundary."""
        life = self.begin(f"every-{kind}", at, weak=weak)
        life.job = replace(life.job, kind=kind)
        life.judge(self.forks[0].run(replace(life.job, at=at, seed=at)))
        return self.close(life)

    def in_store(self, kind: str, seed: int) -> Verdict:
        """Faults of an object store, run after run; `kind` is `store-` and a kind of weather."""
        life, rng = self.begin(kind, seed), random.Random(f"{kind}/{seed}")
        for _ in range(FAULTY_RUNS):
            at = rng.randint(1, self._bytes(life)) if life.job.kind == "full" else 0
            told = self.forks[0].run(replace(life.job, at=at, seed=rng.getrandbits(30)))
            life.judge(told)
            if told.ended and not life.silent:
                break
        return self.close(life)

    def of_two(self, kind: str, seed: int, *, weak: bool = False) -> Verdict:
        """Two drivers at once, each killed at a boundary of its own, until both come to their end."""
        life, rng = self.begin(kind, seed, weak=weak), random.Random(f"{kind}/{seed}")
        for _ in range(FAULTY_RUNS):
            pair = [self._one_of(life, name, rng) for name in "ab"]
            for fork, job in zip(self.forks, pair, strict=True):
                fork.start(job)
            told = [fork.wait(job) for fork, job in zip(self.forks, pair, strict=True)]
            for each in told:
                life.judge(each)
            if all(each.ended for each in told):
                break
        return self.close(life)

    def _one_of(self, life: Life, name: str, rng: random.Random) -> Job:
        """A job of its own on the life's workspace, to be killed."""
        at, seed = rng.randint(1, 8 * life.output.shards), rng.getrandbits(30)
        return replace(life.job, kind="kill", at=at, seed=seed, told=f"{life.job.told}-{name}")

    def of_clocks(self, kind: str, seed: int) -> Verdict:
        """One driver is held up amid its work; another, whose clock has jumped by days, ends and seals; then the first goes on.
        Its file was in a living hand all the time, so it too must come to its end."""
        life, rng = self.begin(kind, seed), random.Random(f"{kind}/{seed}")
        slow = replace(self._one_of(life, "slow", rng), kind="stop")
        pid = self.forks[1].start(slow)
        until(lambda: stopped(pid) or ended(pid))
        days = rng.choice([-400, -3, -1, 1, 3, 400])
        life.judge(self.forks[0].run(replace(life.job, at=days)))
        if stopped(pid):
            os.kill(pid, signal.SIGCONT)
        told = self.forks[1].wait(slow)
        life.judge(told)
        life.verdict.wrong += [] if told.ended else [f"a living writer's work was taken from it: {told.error}"]
        return self.close(life)

    def on_small_disk(self, kind: str, mount: Callable[[str, str], None], sizes: Sequence[str]) -> Verdict:
        """A disk that is too small, and is made larger from run to run."""
        life = self.begin(kind, 0)
        for size in sizes:
            mount(life.job.url, size)
            told = self.forks[0].run(replace(life.job, kind="calm"))
            life.judge(replace(told, faults=[f"{size}: {told.error}"] if told.error else []))
        return life.end(self.forks[0].run)

    def on_ray(self, victim: str, seed: int) -> Verdict:
        """SIGKILL of the driver, of a worker or of the raylet, once some shards are done."""
        life, rng = self.begin(f"ray-{victim}", seed), random.Random(f"{victim}/{seed}")
        job = replace(life.job, kind="calm", executor="ray", workers=2)
        life.judge(self._killed_on_ray(job, victim, rng.randint(1, life.output.shards - 3)))
        return self.close(life)

    def _killed_on_ray(self, job: Job, victim: str, after: int) -> Told:
        Path(job.told).touch()
        run = subprocess.Popen([*COMMAND, job.line()], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        until(lambda: Told.by(job.told).done >= after or run.poll() is not None)
        family = below(run.pid)
        targets = [pid for pid, line in family.items() if VICTIMS[victim] in line] if VICTIMS[victim] else [run.pid]
        for pid in targets[:1]:
            os.kill(pid, signal.SIGKILL)
        try:
            run.wait(120)
            return replace(Told.by(job.told), faults=[f"SIGKILL of the {victim} after {after} shards"] * bool(targets))
        except subprocess.TimeoutExpired:
            return replace(Told.by(job.told), crash=f"it hangs since the {victim} was killed")
        finally:
            for pid in (run.pid, *family):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            run.wait()
