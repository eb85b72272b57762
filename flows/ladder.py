"""The ladder: projects that each have one part more than the one they extend, trained alike from several seeds.

Each rung and seed is a run like any other, in a workspace of its own under that of the ladder, as `ladder_plain-0`, carried out
by the command line in a process of its own, several at a time. What lies there is reused. What a run shares with an earlier
one, which is all but what the seed or the part changes, it takes from there by hard links: a file of a workspace is never
written in place. Only what the comparison needs is made: no untrained student answers, and no run has a report.
"""

import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Event

from flows.config import Project
from flows.graph import Step, above, artifacts, steps_of
from flows.states import state_of
from flows.words import duration
from schemas.artifact import RECORD, Artifact
from schemas.config import override, parse, read_toml
from schemas.errors import ConfigError, StageFailed, StaleArtifact
from schemas.storage import Folder
from stages.report import ladder
from stages.report.ladder import MOST_SEEDS, Ladder, Rung

ANSWERS = "predictions/trained"
LOG = "log.txt"
JSON, PAGE = "ladder.json", "ladder.html"
SECONDS_BETWEEN_LOOKS = 0.2
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """One rung from one seed."""

    config: Path
    seed: int
    sets: tuple[str, ...]
    ladder: Path

    @cached_property
    def project(self) -> Project:
        data = override(read_toml(self.config), self.assignments)
        return parse(Project, data | {"workspace": str(self.workspace)}, str(self.config))

    @property
    def name(self) -> str:
        return f"{self.config.stem}-{self.seed}"

    @property
    def workspace(self) -> Path:
        return self.ladder / self.name

    @property
    def assignments(self) -> tuple[str, ...]:
        return (*self.sets, f"train.seed={self.seed}")

    @cached_property
    def steps(self) -> list[Step]:
        return steps_of(self.project)

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        return artifacts(self.steps, Folder(str(self.workspace)))

    @cached_property
    def wanted(self) -> list[str]:
        """The steps up to the trained student's answers, and those that vouch for them."""
        names = set(above(self.steps, [ANSWERS]))
        gates = {gate for step in self.steps if step.name in names for gate in step.gates.values()}
        return above(self.steps, names | gates)

    @cached_property
    def own(self) -> list[str]:
        """Those that the seed is part of."""
        train = next(step for step in self.steps if step.name == "train")
        return [name for name in self.wanted if name in {train.name, ANSWERS, *train.gates.values()}]

    @cached_property
    def shared(self) -> list[str]:
        return [name for name in self.wanted if name not in self.own]

    def lacks(self, names: Sequence[str]) -> bool:
        """Whether any is still to be made; StaleArtifact where one was made of another config."""
        made = self.artifacts
        states = {step.name: state_of(made[step.name], step.inputs_in(made)) for step in self.steps if step.name in names}
        for name, state in states.items():
            if state.kind == "stale":
                remedy = f"Climb in another --folder, or take away {self.workspace}."
                raise StaleArtifact(state.reason, made[name].where, remedy)
        return any(state.kind != "done" for state in states.values())

    def borrow(self, lenders: Sequence["Run"]) -> None:
        """Take what is shared, and not begun here, from the runs that have it complete."""
        mine = self.artifacts
        missing = [name for name in self.shared if state_of(mine[name]).kind == "missing"]
        for lender in lenders if missing else ():
            theirs = lender.artifacts
            for name in missing:
                if name in theirs and theirs[name].fingerprint == mine[name].fingerprint and not mine[name].record():
                    _link(theirs[name], mine[name])

    def make(self, names: Sequence[str], stop: Event) -> None:
        """Carry out these steps, until `stop`; StageFailed with the last line that was said."""
        self.workspace.mkdir(parents=True, exist_ok=True)
        options = [word for each in self.assignments for word in ("--set", each)]
        options += [word for name in names for word in ("--only", name)]
        command = [sys.executable, "-m", "flows.cli", "run", str(self.config), "--workspace", str(self.workspace), *options]
        with (self.workspace / LOG).open("ab") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log)
            while child.poll() is None:
                if stop.wait(SECONDS_BETWEEN_LOOKS):
                    child.terminate()
                    child.wait()
        if child.returncode:
            said = (self.workspace / LOG).read_text(errors="replace").splitlines() or ["nothing was said"]
            raise StageFailed(said[-1], self.name, f"All that it said is in {self.workspace / LOG}.")

    def scores(self) -> dict[str, float]:
        """task/score -> value, as the report computes them."""
        from stages.report.reading import read_predictions
        from stages.report.scores import of

        found = of(read_predictions(self.artifacts[ANSWERS]), self.project.report.meteor)
        return {f"{task}/{name}": value for task, values in found.items() for name, value in values.items()}


def _link(theirs: Artifact, mine: Artifact) -> None:
    """The record last, as always."""
    if state_of(theirs).kind == "done":
        for name in sorted(theirs.folder.tree(), key=lambda name: (name == RECORD, name)):
            target = Path(mine.folder.path(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            os.link(theirs.folder.path(name), target)


def climb(configs: Sequence[Path], *, seeds: int, sets: Sequence[str], folder: Path, at_once: int, tell: Tell) -> Ladder:
    """Make all that is missing, `at_once` trainings at a time, and compare; leaves JSON and a page in `folder`.

    configs: in any order, a rung comes after those that it extends. tell: told a line for every run that is done.
    """
    upwards = sorted((_there(config) for config in configs), key=lambda config: len(_extended(config)))
    runs = [Run(config, seed, tuple(sets), folder) for seed in range(seeds) for config in upwards]
    _check(runs)
    _carry_out(runs, at_once, tell)
    found = compared(runs)
    (folder / JSON).write_text(json.dumps(found.as_json(), indent=1) + "\n")
    (folder / PAGE).write_text(ladder.page(found))
    return found


def _carry_out(runs: Sequence[Run], at_once: int, tell: Tell) -> None:
    """First what is shared, one run after the other, then the trainings. All of it in threads, which no signal reaches: an
    interruption comes up here, and leaves nobody's process behind."""
    stop = Event()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for number, run in enumerate(runs):
                run.borrow(runs[:number])
                pool.submit(_timed, run, run.shared, tell, stop).result()
            for training in as_completed([pool.submit(_timed, run, run.own, tell, stop) for run in runs]):
                training.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _there(config: Path) -> Path:
    if not config.is_file():
        raise ConfigError("no such config file", str(config), "Check the path.")
    return config.resolve()


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise ConfigError("no rungs", "the ladder", "Name the configs of one or more.")
    if len({run.seed for run in runs}) > MOST_SEEDS:
        raise ConfigError(f"more than {MOST_SEEDS} seeds", "the ladder", "There is no interval for so many.")
    if len({run.workspace for run in runs}) < len(runs):
        raise ConfigError("two rungs of one file name", "the ladder", "Give each config a name of its own.")
    steps = {run.project.train.steps for run in runs}
    if len(steps) > 1:
        raise ConfigError(f"rungs of {' and '.join(map(str, sorted(steps)))} steps", "the ladder", "Train all of them alike.")


def _timed(run: Run, names: Sequence[str], tell: Tell, stop: Event) -> None:
    started = time.monotonic()
    if run.lacks(names):
        run.make(names, stop)
        tell(f"{run.name}: {', '.join(names)} in {duration(time.monotonic() - started)}")


def compared(runs: Sequence[Run]) -> Ladder:
    """The scores of complete runs, rung by rung in their order."""
    configs = list(dict.fromkeys(run.config for run in runs))
    rungs = []
    for config in configs:
        mine = [run for run in runs if run.config == config]
        found = [run.scores() for run in mine]
        values = {score: [each[score] for each in found] for score in found[0] if all(score in each for each in found)}
        rungs.append(Rung(config.stem, mine[0].project.report.title, _below(config, configs), values))
    return Ladder(sorted({run.seed for run in runs}), runs[0].project.train.steps, rungs)


def _below(config: Path, configs: Sequence[Path]) -> str | None:
    """The name of the nearest config that this one extends, among these."""
    return next((parent.stem for parent in _extended(config) if parent in configs), None)


def _extended(config: Path) -> list[Path]:
    """The configs that this one extends, the nearest first."""
    extends = tomllib.loads(config.read_text(encoding="utf-8")).get("extends")
    parent = (config.parent / extends).resolve() if extends else None
    return [parent, *_extended(parent)] if parent else []
