"""The flows on a small real project, against a real server: parts, reuse, staleness, rebuild, and names people can read."""

from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

from flows.config import Project
from flows.distill import build_data, start
from flows.states import StepResult
from schemas.config import override, parse, read_toml
from schemas.errors import StaleArtifact
from tests.flows.conftest import LIGHT

pytestmark = pytest.mark.usefixtures("prefect_server")


def project(config: Path, *sets: str) -> Project:
    return parse(Project, override(read_toml(config), sets), str(config))


def told(made: list[StepResult]) -> dict[str, str]:
    return {one.step: one.how for one in made}


def test_light_steps_are_made_once_refused_when_stale_and_made_anew_on_demand(micro):
    assert told(start(project(micro), LIGHT, None)) == dict.fromkeys(LIGHT, "computed")
    assert told(start(project(micro), LIGHT, None)) == dict.fromkeys(LIGHT, "reused")

    other = project(micro, "prompts.seed=7")
    with pytest.raises(StaleArtifact, match=r"config.seed: 0 -> 7.*--rebuild prompts"):
        start(other, LIGHT, None)
    assert told(start(project(micro), LIGHT, None)) == dict.fromkeys(LIGHT, "reused"), "a refusal costs nothing"

    made = start(other, LIGHT, ["prompts"])
    below = ["prompts", "samples", "vocabulary"]
    assert told(made) == {name: "computed" if name in below else "reused" for name in LIGHT}
    assert made[LIGHT.index("samples")].why == "input prompts changed, under the rebuild of prompts"

    again = start(other, LIGHT, ["prompts"])
    assert [one.step for one in again if one.how == "computed"] == ["prompts"], "same bytes: what follows stays"

    named = FlowRunFilterName(any_=[f"micro · only {', '.join(LIGHT)} · rebuild prompts"])
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=named))
    assert runs
    assert all({"sailyard", "micro"} <= set(run.tags) for run in runs)


def test_a_part_runs_alone(micro):
    made = build_data(project(micro), only=["source"])
    assert told(made) == {"source": "computed"}
