"""The command line: what it prints, what it imports, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.conftest import LIGHT, QUICKSTART
from tests.flows.processes import children, is_alive, until
from tests.flows.small import ROOT, sailyard

HEAVY = {"prefect", "ray", "torch", "apache_beam", "transformers"}


def imported_by(*args: str | Path) -> set[str]:
    code = "import sys, flows.cli\ntry: flows.cli.main()\nfinally: print(sorted({m.split('.')[0] for m in sys.modules}))"
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=100, check=True)
    return set(json.loads(done.stdout.splitlines()[-1].replace("'", '"')))


def test_help_imports_nothing_heavy():
    names = imported_by("--help")
    assert "typer" in names
    assert not names & (HEAVY | {"pyarrow", "numpy", "pydantic"})


def test_a_plan_imports_no_engine(micro):
    names = imported_by("plan", micro)
    assert "pyarrow" in names
    assert not names & HEAVY


def test_a_plan_says_the_state_of_each_step_and_touches_nothing(micro, tmp_path):
    done = sailyard("plan", micro, "--json", "--workspace", tmp_path / "other")
    plan = json.loads(done.stdout)
    assert done.returncode == 0
    assert plan["workspace"] == str(tmp_path / "other")
    assert [step["step"] for step in plan["steps"]][:3] == ["source", "images", "annotations"]
    assert {step["kind"] for step in plan["steps"]} == {"missing"}
    assert any("random" in note for step in plan["steps"] for note in step["notes"])
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["plan", "nothing.toml"], "nothing.toml: no such config file"),
        (["plan", QUICKSTART, "--set", "train.step=2"], "did you mean steps?"),
        (["run", QUICKSTART, "--only", "sampels"], "did you mean samples?"),
        (["run", QUICKSTART, "--rebuild", "feature/sam2"], "did you mean features/sam2?"),
        (["run", QUICKSTART, "--wrokspace", "x"], "--wrokspace"),
    ],
)
def test_a_command_that_means_nothing_is_told_so_in_a_line(args, says):
    done = sailyard(*args)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture(scope="module")
def finished(prefect_server, tmp_path_factory) -> Path:
    """The TOML of a project whose light steps have been made from the command line, with what that printed beside it."""
    folder = tmp_path_factory.mktemp("finished")
    config = folder / "micro.toml"
    text = f'extends = "{QUICKSTART}"\nname = "cli"\nworkspace = "{folder / "runs"}"\n'
    config.write_text(text + 'source.train = 6\nsource.evaluation = 2\npool.shards = 2\nresources.executor = "local"\n')
    done = sailyard("run", config, "--json", *only(LIGHT))
    assert done.returncode == 0, done.stderr
    (folder / "printed.json").write_text(done.stdout)
    (folder / "told.txt").write_text(done.stderr)
    return config


def only(steps: list[str]) -> list[str]:
    return [word for step in steps for word in ("--only", step)]


def test_a_run_ends_with_one_json_object_and_tells_its_progress(finished):
    lines = (finished.parent / "printed.json").read_text().splitlines()
    found = json.loads(lines[-1])
    assert found.keys() == {"workspace", "artifacts", "metrics", "report"}
    assert sorted(found["artifacts"]) == sorted(LIGHT)
    assert all(Path(path, "record.json").exists() for path in found["artifacts"].values())
    told = (finished.parent / "told.txt").read_text()
    assert all(f"{step}: computed in" in told for step in LIGHT)
    assert "Traceback" not in told


def test_without_a_server_a_run_brings_its_own_and_ctrl_c_ends_both(finished, tmp_path):
    without = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    endless = ["--set", "source.train=200000", "--workspace", str(tmp_path), "--only", "source"]
    command = [sys.executable, "-m", "flows.cli", "run", str(finished), *endless]
    run = subprocess.Popen(command, cwd=ROOT, env=without, text=True, stderr=subprocess.PIPE, start_new_session=True)
    until(lambda: len(list(tmp_path.rglob("*.jpg"))) > 3)
    (server,) = [pid for pid, line in children(run.pid).items() if "flows.server" in line]
    os.killpg(run.pid, signal.SIGINT)
    _, told = run.communicate(timeout=60)
    assert run.returncode == 130
    assert told.splitlines()[-1] == "interrupted: what is done stays done, run again to go on"
    assert "Traceback" not in told
    until(lambda: not is_alive(server))


@pytest.mark.slow
def test_two_runs_at_once_harm_nothing(finished, tmp_path):
    command = [sys.executable, "-m", "flows.cli", "run", str(finished), "--workspace", str(tmp_path / "both"), *only(LIGHT)]
    runs = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait(200) for run in runs] == [0, 0]
    assert sailyard("verify", tmp_path / "both").returncode == 0
    alone, both = finished.parent / "runs", tmp_path / "both"
    tables = [path.relative_to(alone) for path in alone.rglob("shard-*")]
    assert tables
    assert all((alone / name).read_bytes() == (both / name).read_bytes() for name in tables)


def test_a_stale_step_fails_in_one_line_with_field_old_and_new(finished):
    done = sailyard("run", finished, "--set", "prompts.seed=3", *only(LIGHT))
    assert done.returncode == 1
    assert "config.seed: 0 -> 3" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_traceback_comes_on_demand_and_once():
    assert sailyard("plan", "nothing.toml", "--traceback").stderr.count("Traceback") == 1


def test_show_prints_record_lineage_and_rows(finished, tmp_path):
    path = finished.parent / "runs" / "samples"
    shown = json.loads(sailyard("show", path, "--json").stdout)
    assert shown["name"] == "samples"
    assert len(shown["rows"]) == 3
    lineage = {made["name"]: made["state"] for made in shown["lineage"]}
    assert lineage == dict.fromkeys(["source", "images", "annotations", "segments/ground_truth", "prompts"], "there")
    assert "images" in sailyard("show", path).stdout
    picture = tmp_path / "sheet.png"
    assert sailyard("show", finished.parent / "runs" / "segments/ground_truth", "--sheet", picture).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_verify_names_what_is_wrong(finished):
    workspace = finished.parent / "runs"
    assert sailyard("verify", workspace).returncode == 0
    victim = workspace / "prompts" / "shard-00001.parquet"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    done = sailyard("verify", workspace)
    victim.write_bytes(whole)
    assert done.returncode == 1
    assert "prompts/shard-00001.parquet: its bytes do not give the recorded digest" in done.stdout
    assert sailyard("verify", workspace / "nowhere").returncode == 1
