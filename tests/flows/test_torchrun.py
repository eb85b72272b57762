"""`torchrun ... run CONFIG --only train`: a group of processes trains one student, without Ray."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from schemas.storage import Folder
from student.training import checkpoint
from tests.flows.processes import descendants, is_alive, until
from tests.flows.small import ROOT, digests, sailyard

OF_TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_MAX_RESTARTS": "3", "LOCAL_RANK": "1"}
PIECES = ["--set", "train.micro_batch=2"]  # a step has two micro-batches: one for each worker


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "torchrun's workers make the step train together, and nothing else. Add --only train"),
        (["--only", "train", "--only", "samples"], "and nothing else"),
        (["--only", "train", "--rebuild", "samples"], "and nothing else"),
        (["--only", "train", "--rebuild", "train"], "each of --max-restarts 3 would take away what was trained"),
    ],
)
def test_a_group_makes_nothing_but_the_student(micro: Path, args: list[str], says: str):
    done = CliRunner().invoke(app, ["run", str(micro), *args], env=OF_TORCHRUN)
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def untrained(unbroken: Path, workspace: Path) -> Path:
    ignored = shutil.ignore_patterns("train", "predictions", "report")
    return Path(shutil.copytree(unbroken.parent / "runs", workspace, ignore=ignored))


def torchrun(config: Path, workspace: Path, *args: str) -> subprocess.Popen[str]:
    """Two workers."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "flows.cli"]
    command += ["run", str(config), "--workspace", str(workspace), "--only", "train", *PIECES, *args]
    variables = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_group_trains_what_two_workers_of_ray_train_and_it_is_done(unbroken: Path, tmp_path: Path):
    ours, rays = (untrained(unbroken, tmp_path / name) for name in ("ours", "rays"))
    group = torchrun(unbroken, ours)
    printed, told = group.communicate(timeout=200)
    assert group.returncode == 0, told
    assert printed.count("\n") < 30 and "train: computed" in told
    away = (ours / "features").rename(tmp_path / "features")
    second = torchrun(unbroken, ours)
    assert "train: reused" in second.communicate(timeout=100)[1], "what is done asks for nothing"
    assert second.returncode == 0
    away.rename(ours / "features")
    again = sailyard("run", unbroken, "--workspace", ours, "--only", "train", *PIECES)
    assert "train: reused" in again.stderr
    on_ray = ["--set", "resources.steps.train.executor=ray", "--set", "resources.steps.train.workers=2"]
    done = sailyard("run", unbroken, "--workspace", rays, "--only", "train", *PIECES, *on_ray)
    assert done.returncode == 0, done.stderr
    assert digests(ours) == digests(rays)


@pytest.mark.slow
def test_what_cannot_be_begun_is_refused_by_all(unbroken: Path, tmp_path: Path):
    workspace = untrained(unbroken, tmp_path / "lacking")
    (workspace / "samples" / "record.json").unlink()
    group = torchrun(unbroken, workspace)
    told = group.communicate(timeout=100)[1]
    assert group.returncode == 1
    assert told.count("error: train: its inputs are not complete: samples (partial)") == 2
    assert not (workspace / "train").exists()


@pytest.mark.slow
def test_a_signal_on_torchrun_saves_the_step(unbroken: Path, tmp_path: Path):
    workspace = untrained(unbroken, tmp_path / "left")
    group = torchrun(unbroken, workspace, "--set", "train.steps=100000", "--set", "train.checkpoint_every=1000")
    until((workspace / "train" / "step-00000000" / "state.json").exists)
    workers = descendants(group.pid)
    group.send_signal(signal.SIGTERM)
    told = group.communicate(timeout=60)[1]
    assert group.returncode != 0
    assert told.count("terminated: what is done stays done, run again to go on") == 2
    left = checkpoint.latest(Folder(str(workspace / "train")))
    assert left is not None and left.step % 1000
    assert not any(map(is_alive, workers))
