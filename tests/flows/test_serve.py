"""Deployments, against a real server: a form that knows the project, and runs that can be started and cancelled from there."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelling

from tests.flows.conftest import QUICKSTART
from tests.flows.processes import children, until

ROOT = Path(__file__).parents[2]
SCENES = 200_000


@contextmanager
def serving(config: Path, workspace: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "flows.cli", "serve", str(config), "--cron", "0 2 * * *", "--workspace", str(workspace)]
    environment = {**os.environ, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with config.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.fixture(scope="module")
def served(prefect_server, tmp_path_factory) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`sailyard serve` of a project whose first step would take hours."""
    folder = tmp_path_factory.mktemp("served")
    config = folder / "endless.toml"
    config.write_text(f'extends = "{QUICKSTART}"\nname = "endless"\nsource.train = {SCENES}\nresources.executor = "local"\n')
    with serving(config, folder / "runs") as process:
        yield process, folder / "runs"


def deployments(client: Any, name: str) -> dict[str, Any]:
    """By entrypoint, once all four are there."""
    found = lambda: {d.entrypoint: d for d in client.read_deployments() if d.name == name}  # noqa: E731
    return until(lambda: found() if len(found()) == 4 else None)


def test_the_form_offers_the_steps_and_the_schedule_is_set(served):
    with get_client(sync_client=True) as client:
        found = deployments(client, "endless")["flows.distill.distill"]
        assert found.schedules[0].schedule.cron == "0 2 * * *"
        properties = found.parameter_openapi_schema["properties"]
        for option in ("only", "rebuild"):
            assert {"images", "features/sam2", "report"} <= set(properties[option]["items"]["enum"])
        assert found.parameters["config"]["source"]["train"] == SCENES
        wrong = {"config": {**found.parameters["config"], "train": {"step": 3}}}
        with pytest.raises(PrefectHTTPStatusError, match="409|422"):
            client.create_flow_run_from_deployment(found.id, parameters=wrong)
        with pytest.raises(PrefectHTTPStatusError, match="409|422"):
            client.create_flow_run_from_deployment(found.id, parameters={"only": ["sampels"]})


def test_cancelling_a_run_ends_its_work(served):
    server, workspace = served
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(
            deployments(client, "endless")["flows.distill.distill"].id, parameters={"only": ["source"]}
        )
        until(lambda: len(list(workspace.rglob("*.jpg"))) > 3)
        assert children(server.pid)
        client.set_flow_run_state(run.id, Cancelling())
        state = until(lambda: (s := client.read_flow_run(run.id).state).is_final() and s)
    assert state.is_cancelled()
    assert not children(server.pid)
    assert not list(workspace.rglob("record.json"))


@pytest.mark.slow
def test_cancelling_a_run_ends_its_work_on_ray(prefect_server, tmp_path):
    config, workspace = tmp_path / "ray.toml", tmp_path / "runs"
    size = "source.train = 200\nsource.evaluation = 2\npool.shards = 40\n"
    config.write_text(f'extends = "{QUICKSTART}"\nname = "rays"\n{size}')
    run = [sys.executable, "-m", "flows.cli", "run", str(config), "--workspace", str(workspace)]
    subprocess.run([*run, "--only", "source", "--only", "images"], cwd=ROOT, check=True, timeout=200)
    with serving(config, workspace) as server, get_client(sync_client=True) as client:
        whole = deployments(client, "rays")["flows.distill.distill"]
        flow_run = client.create_flow_run_from_deployment(
            whole.id, parameters={"only": ["passport/mask2former", "features/mask2former"]}
        )
        until(lambda: len(list(workspace.rglob("*.arrow"))) > 1, 120)
        client.set_flow_run_state(flow_run.id, Cancelling())
        state = until(lambda: (s := client.read_flow_run(flow_run.id).state).is_final() and s)
        assert state.is_cancelled()
        assert not children(server.pid)
        until(lambda: not [line for line in command_lines() if line.startswith("ray::_Worker")], 20)
        assert len(list(workspace.rglob("*.arrow"))) < 40


def command_lines() -> list[str]:
    files = [path / "cmdline" for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [file.read_bytes().decode(errors="replace") for file in files if file.exists()]
