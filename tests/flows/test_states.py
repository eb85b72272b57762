"""What a workspace is said to hold, after each thing that may have happened to it."""

from dataclasses import replace
from pathlib import Path

import pytest

from flows.graph import artifacts
from flows.progress import Meter
from flows.states import State, clear, state_of
from flows.steps import make_step
from schemas.artifact import RECORD, Artifact, verify
from schemas.errors import BrokenArtifact, StageFailed, StaleArtifact
from schemas.storage import Folder
from tests.flows.tiny import SHARDS, chain


def nothing(done: int, total: int, unit: str, note: str = "") -> None: ...


@pytest.fixture
def made(workspace, tmp_path) -> dict[str, Artifact]:
    steps = chain(tmp_path / "diary")
    found = artifacts(steps, workspace)
    for step in steps:
        make_step(step, found, nothing)
    return found


def states(workspace: Folder, tmp_path: Path, **changes) -> dict[str, State]:
    found = artifacts(chain(tmp_path / "diary", **changes), workspace)
    return {name: state_of(artifact) for name, artifact in found.items()}


def test_missing_then_done(workspace, tmp_path, request):
    assert {state.kind for state in states(workspace, tmp_path).values()} == {"missing"}
    request.getfixturevalue("made")
    after = states(workspace, tmp_path)
    assert {state.kind for state in after.values()} == {"done"}
    assert (after["counted"].done, after["counted"].total, after["counted"].rows) == (SHARDS, SHARDS, 3 * SHARDS)
    assert after["counted"].seconds is not None


def test_a_record_that_is_gone_leaves_the_shards(made, workspace, tmp_path):
    made["counted"].folder.remove(RECORD)
    made["counted"].folder.remove("shard-00002.parquet")
    state = states(workspace, tmp_path)["counted"]
    assert (state.kind, state.done, state.total) == ("partial", SHARDS - 1, SHARDS)


def test_a_file_that_is_gone_is_missed_and_made_anew(made, workspace, tmp_path):
    before = made["group/copied"].record()
    made["group/copied"].folder.remove("shard-00001.parquet")
    state = states(workspace, tmp_path)["group/copied"]
    assert state.kind == "partial"
    assert "shard-00001.parquet" in state.reason
    again = make_step(chain(tmp_path / "diary")[1], made, nothing)
    assert again.how == "computed"
    assert made["group/copied"].record().parts == before.parts
    assert verify(made["group/copied"].folder) == []


def test_a_changed_config_is_named_and_what_follows_is_stale_by_its_inputs(made, workspace, tmp_path):
    after = states(workspace, tmp_path, rows=4)
    assert after["counted"].kind == after["group/copied"].kind == after["noted"].kind == "stale"
    assert after["counted"].reason == "config.rows: 3 -> 4"
    assert not after["counted"].by_inputs
    assert (after["group/copied"].reason, after["group/copied"].by_inputs) == ("input counted changed", True)


def test_other_bytes_under_the_same_fingerprint_reach_what_follows(made, tmp_path):
    steps = chain(tmp_path / "diary")
    inputs = steps[1].inputs_in(made)
    assert state_of(made["group/copied"], inputs).kind == "done"
    again = replace(made["counted"].record(), parts=[replace(part, digest="f" * 64) for part in made["counted"].record().parts])
    made["counted"].folder.write("record.json", again.json().encode())
    state = state_of(made["group/copied"], inputs)
    assert (state.kind, state.reason, state.by_inputs) == ("stale", "input counted changed", True)
    with pytest.raises(StaleArtifact, match="input counted changed"):
        make_step(steps[1], made, nothing)
    assert make_step(steps[1], made, nothing, rebuild="counted").how == "computed"
    assert state_of(made["group/copied"], inputs).kind == "done"


def test_half_made_shards_of_another_config_are_stale(made, workspace, tmp_path):
    made["counted"].folder.remove(RECORD)
    assert states(workspace, tmp_path, rows=4)["counted"].reason == "config.rows: 3 -> 4"


def test_half_made_files_of_another_config_are_stale(workspace, tmp_path):
    key = tmp_path / "key"
    steps = chain(tmp_path / "diary", key=key)
    found = artifacts(steps, workspace)
    make_step(steps[0], found, nothing)
    make_step(steps[1], found, nothing)
    with pytest.raises(StageFailed, match="there is no key"):
        make_step(steps[2], found, nothing)
    half = states(workspace, tmp_path)["noted"]
    assert (half.kind, half.done) == ("partial", 1)
    assert states(workspace, tmp_path, text="b")["noted"].reason == 'config.text: "a" -> "b"'
    key.touch()
    make_step(steps[2], found, nothing)
    assert verify(found["noted"].folder) == []


def test_stale_is_refused_unless_only_inputs_differ_under_a_rebuild(made, workspace, tmp_path):
    steps = chain(tmp_path / "diary", rows=4)
    found = artifacts(steps, workspace)
    with pytest.raises(StaleArtifact, match="config.rows: 3 -> 4.*--rebuild counted"):
        make_step(steps[0], found, nothing, rebuild="counted")
    clear(found["counted"])
    make_step(steps[0], found, nothing)
    with pytest.raises(StaleArtifact, match="input counted changed"):
        make_step(steps[1], found, nothing)
    again = make_step(steps[1], found, nothing, rebuild="counted")
    assert (again.how, again.state.rows) == ("computed", 4 * SHARDS)


def test_what_is_to_be_made_anew_stays_until_that_can_begin(made, workspace, tmp_path):
    steps = chain(tmp_path / "diary", rows=4)
    with pytest.raises(BrokenArtifact, match=r"group/copied: its inputs are not complete: counted \(stale\)"):
        make_step(steps[1], artifacts(steps, workspace), nothing, rebuild="counted")
    assert state_of(made["group/copied"]).kind == "done"


def test_an_object_store_serves_as_well(s3_bucket, tmp_path):
    workspace = Folder(f"{s3_bucket}/states")
    steps = chain(tmp_path / "diary")
    found = artifacts(steps, workspace)
    assert [make_step(step, found, nothing).how for step in steps] == ["computed"] * 3
    assert [make_step(step, found, nothing).how for step in steps] == ["reused"] * 3
    found["counted"].folder.remove("shard-00000.parquet")
    assert state_of(found["counted"]).kind == "partial"
    clear(found["group/copied"])
    assert states(workspace, tmp_path)["group/copied"].kind == "missing"


def test_a_meter_counts_from_where_the_work_began(capsys):
    ticks = iter([0.0, 10.0, 12.0, 14.0])
    drawn: list[tuple[float, str]] = []
    with Meter("features/sam2", lambda percent, line: drawn.append((percent, line)), clock=lambda: next(ticks)) as meter:
        meter(100, 200, "shards")
        meter(110, 200, "shards", "seven failed")
        meter(200, 200, "shards")
    lines = capsys.readouterr().err.splitlines()
    assert drawn[1] == (55.0, "features/sam2: 110/200 shards · 5.0/s · 18 s left · seven failed")
    assert lines == ["features/sam2: 100/200 shards", "features/sam2: 200/200 shards · 25.0/s"]
