"""A run that is killed at any moment and started again ends with the bytes of one that was not; one that has ended is left
as it is."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from schemas.storage import Folder
from tests.flows.processes import descendants, is_alive, until
from tests.flows.small import COMMAND, ROOT, STEPS, digests, sailyard

SECONDS_BETWEEN_LOOKS = 0.002


def killed(moment: Callable[[], bool], *args: str | Path) -> bool:
    """Whether `run`, in a process group of its own, was still at work when `moment` had come: then all of it was killed."""
    command = [*COMMAND, "run", *map(str, args)]
    with tempfile.TemporaryFile("w+") as told:
        run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=told, start_new_session=True)
        while run.poll() is None and not moment():
            time.sleep(SECONDS_BETWEEN_LOOKS)
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            return run.wait() == -signal.SIGKILL
        told.seek(0)
        assert run.returncode == 0, told.read()
        return False


def appears(workspace: Path, pattern: str) -> Callable[[], bool]:
    """A moment: something that matches `pattern` and was not there before lies in the workspace, whole or not."""
    before = set(workspace.glob(pattern))
    return lambda: bool(set(workspace.glob(pattern)) - before)


def passes(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def stamps(paths: Iterator[Path]) -> dict[Path, tuple[int, int]]:
    """path -> what another writing of the same bytes would change."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths if path.is_file()}


def whole(workspace: Path) -> dict[Path, tuple[int, int]]:
    """The stamps of all that must not be made a second time: shards, records, and checkpoints that count."""
    checkpoints = (state.parent.iterdir() for state in workspace.glob("train/step-*/state.json"))
    return stamps(itertools.chain(workspace.rglob("shard-*"), workspace.rglob("record.json"), *checkpoints))


def assert_ends_as(unbroken: Path, workspace: Path, *args: str) -> None:
    before = whole(workspace)
    done = sailyard("run", unbroken, "--workspace", workspace, *args)
    assert done.returncode == 0, done.stderr
    assert before.items() <= whole(workspace).items()
    assert digests(workspace) == digests(unbroken.parent / "runs")
    audit = sailyard("verify", workspace)
    assert audit.returncode == 0, audit.stdout


def test_two_kills_cost_nothing_that_was_done(unbroken, tmp_path):
    workspace, kept = tmp_path / "killed", {}
    for pattern in ("features/sam2/shard-*", "train/step-00000004"):
        assert killed(appears(workspace, pattern), unbroken, "--workspace", workspace)
        now = whole(workspace)
        assert kept.items() <= now.items()
        kept = now
    # What a writing that was cut short leaves: of this run, and of one that was given up long ago.
    young, old = (workspace / "train" / f".metrics.jsonl.{name}.tmp" for name in ("young", "old"))
    young.write_bytes(b"{")
    old.write_bytes(b"{")
    os.utime(old, (0, 0))
    assert_ends_as(unbroken, workspace)
    assert young.exists()
    assert not old.exists()
    assert not any(name.endswith(".tmp") for name in Folder(str(workspace)).tree())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_on_ray_takes_its_workers_with_it(unbroken, tmp_path, number):
    workspace = tmp_path / "interrupted"  # named relatively below: Ray's workers stand in directories of their own
    shutil.copytree(unbroken.parent / "runs", workspace, ignore=shutil.ignore_patterns("train", "predictions", "report"))
    options = ["--workspace", workspace.name, "--only", "train", "--set", "train.steps=100000", "--set", "train.micro_batch=2"]
    options += ["--set", "resources.executor=ray", "--set", "resources.steps.train.workers=2"]
    begun = appears(workspace, "train/step-*4")
    command = [*COMMAND, "run", str(unbroken), *options]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True)
    until(begun)
    group = descendants(run.pid)
    os.killpg(run.pid, number)
    assert b"what is done stays done" in run.communicate(timeout=60)[1]
    assert run.returncode == 128 + number
    until(lambda: not any(map(is_alive, group)))


def test_a_second_run_computes_nothing(unbroken):
    workspace = unbroken.parent / "runs"
    before = stamps(workspace.rglob("*"))
    done = sailyard("run", unbroken, "--json")
    assert done.returncode == 0
    assert [line.split(",")[0] for line in done.stderr.splitlines()] == [f"{step}: reused" for step in STEPS]
    assert stamps(workspace.rglob("*")) == before
    assert json.loads(done.stdout.splitlines()[-1])["report"] == str(workspace / "report" / "report.html")


def test_a_field_that_would_change_data_is_refused_in_a_line(unbroken):
    workspace = unbroken.parent / "runs"
    before = stamps(workspace.rglob("*"))
    done = sailyard("run", unbroken, "--set", "train.steps=7")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "config.train.steps: 6 -> 7" in line
    assert str(workspace / "train") in line
    assert "--rebuild train" in line
    assert stamps(workspace.rglob("*")) == before


def test_where_and_how_it_runs_changes_nothing(unbroken, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(unbroken.parent / "runs", moved)
    elsewhere = ["executor=ray", "workers=3", "threads=2", "batch=3", "device=cuda", "steps.train.workers=2"]
    sets = [f"resources.{each}" for each in elsewhere] + ["train.checkpoint_every=3", "train.readers=2"]
    options = [word for each in sets for word in ("--set", each)]
    plan = json.loads(sailyard("plan", unbroken, "--json", "--workspace", moved, *options).stdout)
    assert {step["step"]: step["kind"] for step in plan["steps"]} == dict.fromkeys(STEPS, "done")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_runs_of_the_whole_at_once_end_as_one(unbroken, tmp_path):
    workspace = tmp_path / "both"
    command = [*COMMAND, "run", str(unbroken), "--workspace", str(workspace)]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for run in runs:
        _, told = run.communicate(timeout=600)
        assert run.returncode == 0, told
    assert_ends_as(unbroken, workspace)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_kill_as_each_step_begins_to_write(unbroken, tmp_path):
    workspace, kept = tmp_path / "killed", {}
    for step in STEPS:
        assert killed(appears(workspace, f"{step}/**/*"), unbroken, "--workspace", workspace)
        now = whole(workspace)
        assert kept.items() <= now.items()
        kept = now
    assert_ends_as(unbroken, workspace)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_kills_at_random(unbroken, tmp_path, executor):
    workspace, kept = tmp_path / "killed", {}
    resources = [f"executor={executor}", "workers=2", "steps.train.workers=1"]
    options = ["--workspace", str(workspace), *(word for each in resources for word in ("--set", f"resources.{each}"))]
    for seconds in np.random.default_rng(0).uniform(5, 30, 12):
        if not killed(passes(seconds), unbroken, *options):
            break
        now = whole(workspace)
        assert kept.items() <= now.items()
        kept = now
    assert_ends_as(unbroken, workspace, *options[2:])
