"""`verify` holds what is complete to its record, and what is half-made to the digests of its shards."""

from pathlib import Path

import pytest

from flows.audit import audit
from flows.graph import artifacts
from flows.steps import make_step
from schemas.artifact import RECORD, Artifact
from schemas.errors import BrokenArtifact
from schemas.storage import Folder
from tests.flows.tiny import chain


@pytest.fixture
def made(workspace: Folder, tmp_path: Path) -> dict[str, Artifact]:
    steps = chain(tmp_path / "diary")
    found = artifacts(steps, workspace)
    for step in steps:
        make_step(step, found, lambda done, total, unit, note="": None)
    return found


def flip(folder: Folder, name: str) -> None:
    data = bytearray(folder.read(name))
    data[len(data) // 3] ^= 1
    folder.write(name, bytes(data))


def test_complete_artifacts_are_as_their_records_say(made: dict[str, Artifact], workspace: Folder, caplog):
    assert dict(audit(workspace.url)) == {name: [] for name in made}
    flip(made["counted"].folder, "shard-00001.parquet")
    faults = dict(audit(workspace.url))
    assert "shard-00001.parquet" in faults["counted"][0]
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["counted", "noted"])
def test_a_half_made_artifact_is_noted_and_is_no_fault(made: dict[str, Artifact], workspace: Folder, caplog, name: str):
    made[name].folder.remove(RECORD)
    assert dict(audit(workspace.url)) == {other: [] for other in made if other != name}
    assert caplog.messages == [f"{name}: not complete: it has no record yet"]


def test_a_damaged_shard_of_a_half_made_artifact_is_a_fault(made: dict[str, Artifact], workspace: Folder, caplog):
    for artifact in made.values():
        artifact.folder.remove(RECORD)
    flip(made["counted"].folder, "shard-00001.parquet")
    ((name, (fault,)),) = audit(workspace.url)
    assert name == "counted"
    assert "counted/shard-00001.parquet: its bytes do not give the digest in its footer" in fault
    assert len(caplog.messages) == len(made)


def test_where_nothing_lies_nothing_is_verified(workspace: Folder):
    with pytest.raises(BrokenArtifact, match="no artifact here"):
        list(audit(workspace.child("nowhere").url))
