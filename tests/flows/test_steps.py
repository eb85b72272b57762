"""A step as a Prefect task, against a real server: computed, reused, retried, refused; and what the pages show."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.runtime import flow_run

from flows.config import Project
from flows.graph import Step, artifacts
from flows.states import StepResult, state_of
from flows.steps import as_task, make_step
from schemas.artifact import RECORD
from schemas.errors import BrokenArtifact, StageFailed, StaleArtifact
from schemas.storage import Folder
from schemas.tables import SEGMENTS
from tests.flows.processes import until
from tests.flows.tiny import SHARDS, chain

pytestmark = pytest.mark.usefixtures("prefect_server")


def project(workspace: Folder, retries: int = 0) -> Project:
    source: Any = {"kind": "shapes"}
    return Project(name="tiny", workspace=workspace.url, source=source, retries=retries, retry_delay=0)


def carry_out(steps: list[Step], workspace: Folder, retries: int = 0) -> list[StepResult]:
    made: list[Any] = []

    @flow(name="carry-out")
    def all_of_them() -> str:
        found = artifacts(steps, workspace)
        made.extend(as_task(step, found, "", project(workspace, retries))().result() for step in steps)
        made.append(flow_run.id)
        return "done"

    all_of_them()
    return made


@pytest.fixture
def diary(tmp_path) -> Path:
    return tmp_path / "diary"


def test_the_second_run_reuses_everything(workspace, diary):
    *first, _ = carry_out(chain(diary), workspace)
    before = {name: size for name, size in workspace.tree().items()}
    *second, _ = carry_out(chain(diary), workspace)
    assert [one.how for one in first] == ["computed"] * 3
    assert [one.how for one in second] == ["reused"] * 3
    assert diary.read_text().split() == ["0", "1", "2", "3"]
    assert workspace.tree() == before


def test_the_run_tells_what_was_done_and_why(workspace, diary):
    *_, first = carry_out(chain(diary), workspace)
    *_, second = carry_out(chain(diary), workspace)
    with get_client(sync_client=True) as client:
        states = until(lambda: states_told(client, second))
        found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[first])))
    assert {state.name for state in states.values()} == {"Reused"}
    assert states["group/copied"].message.startswith("complete as ")
    pages = {artifact.key: artifact for artifact in found}
    assert pages["tiny-progress-group-copied"].type == "progress"
    assert pages["tiny-progress-group-copied"].data == 100
    table = {row["what"]: row["value"] for row in json.loads(pages["tiny-step-group-copied"].data)}
    assert (table["how"], table["why"], table["rows"], table["errors"]) == ("computed", "nothing was there", 12, 0)
    assert table["bytes"] > 0


def states_told(client: Any, run: Any) -> dict[str, Any]:
    """The states of the run's tasks once the server has heard of every end: it writes them down from events, after the run."""
    states = {task.name: task.state for task in client.read_task_runs(flow_run_filter=only(run))}
    return states if len(states) == 3 and all(state.is_final() for state in states.values()) else {}


def only(run: Any) -> FlowRunFilter:
    return FlowRunFilter(id=FlowRunFilterId(any_=[run]))


def test_a_retry_finds_what_is_missing(workspace, diary, tmp_path):
    trap = tmp_path / "trap"
    trap.touch()
    *made, _ = carry_out(chain(diary, trap=trap), workspace, retries=1)
    assert not trap.exists()
    assert diary.read_text().split() == ["0", "1", "2", "3"]
    assert made[1].why == f"2 of {SHARDS} were there"


def test_what_cannot_change_is_not_tried_again(workspace, diary):
    carry_out(chain(diary), workspace)
    with pytest.raises(StaleArtifact):
        carry_out(chain(diary, rows=4), workspace, retries=3)


def test_an_error_comes_out_as_itself_and_leaves_no_record(workspace, diary, tmp_path):
    trap = tmp_path / "trap"
    trap.touch()
    with pytest.raises(StageFailed, match="the trap snapped"):
        carry_out(chain(diary, trap=trap), workspace)
    left = sorted(workspace.child("group/copied").names())
    assert left == ["identity.json", "shard-00000.parquet", "shard-00001.parquet"]


def test_incomplete_inputs_are_named(workspace, diary):
    with pytest.raises(BrokenArtifact, match=r"group/copied \(missing\)"):
        carry_out_last(chain(diary), workspace)


def carry_out_last(steps: list[Step], workspace: Folder) -> None:
    @flow(name="carry-out-last")
    def the_last() -> str:
        as_task(steps[-1], artifacts(steps, workspace), "", project(workspace))()
        return "done"

    the_last()


def test_what_was_half_made_from_other_bytes_is_refused(tmp_path):
    """The input was made again under the same fingerprint and is of other bytes: what was begun with the old ones does not go
    on with the new."""
    quiet: Any = lambda done, total, unit, note="": None  # noqa: E731
    steps = chain(tmp_path / "diary", trap=tmp_path / "trap")
    found = artifacts(steps, Folder(str(tmp_path / "runs")))
    make_step(steps[0], found, quiet)
    (tmp_path / "trap").touch()
    with pytest.raises(StageFailed, match="the trap snapped"):
        make_step(steps[1], found, quiet)
    assert state_of(found["group/copied"], steps[1].inputs_in(found)).kind == "partial"
    counted = found["counted"]
    counted.folder.remove(RECORD)
    counted.write(0, SEGMENTS.rows([{"image_key": f"0-{row}", "segments": []} for row in (2, 1, 0)]))
    counted.seal("2020-01-01T00:00:00", "2020-01-01T00:00:01", {}, code="", packages={})
    state = state_of(found["group/copied"], steps[1].inputs_in(found))
    assert (state.kind, state.reason, state.by_inputs) == ("stale", "input counted changed", True)
    with pytest.raises(StaleArtifact, match="input counted changed"):
        make_step(steps[1], found, quiet)
    made = make_step(steps[1], found, quiet, rebuild="counted")
    assert made.how == "computed"
