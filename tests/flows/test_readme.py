"""Every command of the README runs, as it stands there, in a folder laid out as a clone is after `make quickstart`, but for
its quickstart being twenty scenes. Only what would take minutes or another machine is bent, by `bent`."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from schemas.artifact import Artifact
from schemas.storage import Folder
from tests.flows.processes import until
from tests.flows.small import ROOT, SMALL, STEPS
from tests.test_docs import commands

BIN = Path(sys.executable).parent
SERVING = [line for line in commands(ROOT / "README.md") if " serve " in line]
COMMANDS = [line for line in commands(ROOT / "README.md") if line not in SERVING]


@pytest.fixture(scope="module")
def desk(unbroken: Path, tmp_path_factory) -> Path:
    """The folder, with COCO-format data where `coco.toml` looks for them."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / ".venv").symlink_to(sys.prefix)
    (desk / "docs").mkdir()
    configs = desk / "flows" / "configs"
    shutil.copytree(ROOT / "flows" / "configs", configs)
    (configs / "quickstart.toml").rename(configs / "full.toml")
    small = SMALL.format(quickstart="full.toml", workspace="runs/quickstart")
    (configs / "quickstart.toml").write_text(small.replace('name = "small"', ""))
    shutil.copytree(unbroken.parent / "runs", desk / "runs" / "quickstart")
    as_coco(desk / "runs" / "quickstart" / "source", desk / "data" / "coco")
    return desk


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{BIN}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", "-c", command], cwd=cwd, env=variables, text=True, capture_output=True, timeout=250)


def as_coco(source: Path, data: Path) -> None:
    """The drawn scenes under the names of COCO's and RefCOCO's archives."""
    for folder in ("train", "eval"):
        shutil.copytree(source / folder, data / "train2017" / folder)
    for name in ("instances", "panoptic"):
        target = data / "annotations" / f"{name}_train2017.json"
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source / f"{name}.json", target)
    shutil.copytree(source / "panoptic", data / "annotations" / "panoptic_train2017")
    for name in ("refcoco/refs(unc).p", "refcoco+/refs(unc).p", "refcocog/refs(umd).p"):
        (data / name).parent.mkdir()
        shutil.copy(source / "refs.p", data / name)


def bent(command: str, desk: Path, s3_bucket: str) -> tuple[str, Path]:
    """The command as it is tested, and where. A target of make is only looked at: the commands under it are tested here."""
    if command.startswith("make "):
        return command.replace("make", "make --dry-run"), ROOT
    if "s3://" in command:
        command = command.replace("http://127.0.0.1:9000", os.environ["AWS_ENDPOINT_URL"]).replace("s3://bucket", s3_bucket)
        return f"{command} --only source --only images", desk
    if "--rebuild" in command:
        shutil.copytree(desk / "runs" / "quickstart", desk / "runs" / "copy")
        return f"{command} --workspace runs/copy", desk
    return command, desk


@pytest.mark.parametrize("command", COMMANDS, ids=COMMANDS)
def test_commands_of_the_readme_run(command: str, desk: Path, s3_bucket: str):
    done = shell(*bent(command, desk, s3_bucket))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_readme_serves(desk: Path):
    (command,) = SERVING
    command = command.replace("http://127.0.0.1:4200/api", os.environ["PREFECT_API_URL"])
    environment, line = command.split(" ", 1)
    variables = {**os.environ, **dict([environment.split("=", 1)])}
    with (desk / "serve.log").open("w") as log:
        words = [str(BIN / "sailyard"), *shlex.split(line)[1:]]
        serving = subprocess.Popen(words, cwd=desk, env=variables, stdout=log, stderr=log)
        try:
            with get_client(sync_client=True) as client:
                until(lambda: any(made.name == "quickstart" and made.schedules for made in client.read_deployments()))
        finally:
            serving.send_signal(signal.SIGINT)
            serving.wait(60)


def test_make_quickstart_runs_the_config_that_the_readme_shows(desk: Path):
    done = shell("make --dry-run quickstart", ROOT)
    assert "sailyard run flows/configs/quickstart.toml" in done.stdout
    plan = shell("sailyard plan flows/configs/quickstart.toml", desk).stdout
    assert plan.count(" done ") == len(STEPS)


def test_the_coco_config_reads_data_in_the_published_formats(desk: Path):
    config = "sailyard run flows/configs/coco.toml --set resources.steps.images.beam_options=[] --set pool.shards=2"
    done = shell(f"{config} --only images --only annotations", desk)
    assert done.returncode == 0, done.stderr
    record = Artifact.sealed(Folder(str(desk / "runs" / "coco" / "annotations"))).record()
    assert record is not None
    assert record.rows == 20
    assert set(record.summary["sources"]) == {f"refcoco{kind}/{split}" for kind in ("", "+", "g") for split in ("train", "val")}
    assert record.summary["without_picture"] == {}
    assert record.summary["split_leak"]["pictures"] == 0
    assert record.failures == []


def test_the_coco_config_says_in_one_line_which_pictures_it_lacks(tmp_path):
    done = shell(f"sailyard plan {ROOT / 'flows/configs/coco.toml'}", tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: data/coco/train2017: there is no such folder")
