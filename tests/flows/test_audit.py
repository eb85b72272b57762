"""`verify` holds what is complete to its record, what is half-made to the digests of its shards, and features to what they
say of themselves; it makes anew exactly what is damaged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from flows.audit import Check, audit, damage_of
from flows.graph import Step, artifacts
from flows.steps import make_step
from schemas.artifact import RECORD, Artifact
from schemas.codecs import bf16_bits
from schemas.errors import BrokenArtifact, ConfigError
from schemas.storage import Folder
from stages.base import Resources
from stages.soundness import DRIFT, ShardCheck, check_shard, drifting
from tests.flows.tiny import chain
from tests.stages.grown import ROWS, SHARDS, SPEC, Grow, Pictures, diary, set_trap, spot
from tests.stages.grown import flip as flip_at


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


# -- features, row by row ----------------------------------------------------------------------------------------------

STEP = "features/tiny"


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    set_trap(tmp_path / "trap", "2-7.png")
    return tmp_path / "trap"


@pytest.fixture
def grown(workspace: Folder, trap: Path) -> tuple[list[Step], dict[str, Artifact]]:
    resources = Resources(executor="local", batch=4, max_error_rate=0.1)
    steps = [
        Step("images", "build_data", Pictures(), {}, {}, SHARDS, resources),
        Step(STEP, "build_data", Grow(trap=str(trap)), {"images": "images"}, {}, SHARDS, resources),
    ]
    found = artifacts(steps, workspace)
    for step in steps:
        make_step(step, found, lambda done, total, unit, note="": None)
    diary(trap)
    return steps, found


def shards(artifact: Artifact) -> list[bytes]:
    return [artifact.folder.read(artifact.shard_name(number)) for number in range(SHARDS)]


def test_a_flipped_bit_is_found_in_its_row_and_healed_alone(grown, workspace: Folder, trap: Path):
    steps, found = grown
    features, before, record = found[STEP], shards(found[STEP]), found[STEP].record()
    for number, row in ((0, 3), (0, 8), (3, 1)):
        flip_at(features.folder, features.shard_name(number), spot(features, number, row))
    assert damage_of(features.folder, True).shards == {0: [3, 8], 3: [1]}
    told = list(Check(workspace.url).lines())
    assert any("shard-00003.arrow: row 1: its bytes do not give its CRC" in line for line in told)
    check = Check(workspace.url, steps)
    assert f"{STEP}: 3 rows and 0 whole shards made anew" in list(check.lines(mend=True))
    assert check.wrong == 0
    assert sorted(diary(trap)) == ["0-3.png", "0-8.png", "3-1.png"]
    assert shards(features) == before
    after = features.record()
    assert record and after
    assert (after.digest, after.started, after.failures) == (record.digest, record.started, record.failures)


def test_a_row_beside_a_damaged_one_is_kept_only_as_its_picture_has_it(grown, workspace: Folder, trap: Path):
    """A map that lies on its side has as many bytes, and the same CRC."""
    steps, found = grown
    features, before = found[STEP], shards(found[STEP])
    name = features.shard_name(0)
    columns = {
        each: features.read(0).column(each).chunks[0].buffers()[1].to_pybytes()[: 4 * ROWS] for each in ("height", "width")
    }
    flip_at(features.folder, name, spot(features, 0, 2))
    for column in columns.values():
        flip_at(features.folder, name, before[0].index(column) + 4 * 4, 1)
    turned = features.read(0).slice(4, 1).to_pylist()[0]
    assert (turned["height"], turned["width"]) == tuple(reversed(SPEC.grid))  # type: ignore[arg-type]
    assert damage_of(features.folder, True).shards == {0: [2]}
    check = Check(workspace.url, steps)
    assert f"{STEP}: 2 rows and 0 whole shards made anew" in list(check.lines(mend=True))
    assert check.wrong == 0
    assert diary(trap) == ["0-2.png", "0-4.png"]
    assert shards(features) == before
    record = features.record()
    assert record
    assert record.summary["rows_made_again"] == 2


@pytest.mark.parametrize("how", ["cut", "gone", "a key", "the end"])
def test_a_shard_in_which_no_row_can_be_named_is_healed_whole(grown, workspace: Folder, trap: Path, how: str):
    steps, found = grown
    features, before = found[STEP], shards(found[STEP])
    name, data = features.shard_name(0), before[0]
    match how:
        case "cut":
            features.folder.write(name, data[: len(data) // 2])
        case "gone":
            features.folder.remove(name)
        case "a key":
            flip_at(features.folder, name, data.index(features.read(0).column("image_key")[2].as_py().encode()))
        case "the end":
            flip_at(features.folder, name, len(data) - 3)
    check = Check(workspace.url, steps)
    assert f"{STEP}: 0 rows and 1 whole shards made anew" in list(check.lines(mend=True))
    assert check.wrong == 0
    assert len(diary(trap)) == ROWS
    assert shards(features) == before


def test_a_table_without_features_is_healed_by_whole_shards(made: dict[str, Artifact], workspace: Folder, tmp_path: Path):
    copied = made["group/copied"]
    whole = copied.folder.read("shard-00002.parquet")
    flip(copied.folder, "shard-00002.parquet")
    copied.folder.write("shard-00009.parquet", b"from elsewhere")
    check = Check(workspace.url, chain(tmp_path / "diary"))
    assert "group/copied: 0 rows and 1 whole shards made anew" in list(check.lines(mend=True))
    assert check.wrong == 0
    assert copied.folder.read("shard-00002.parquet") == whole


def test_a_record_that_cannot_be_read_is_left_to_the_next_run(grown, workspace: Folder, trap: Path):
    steps, found = grown
    features, before = found[STEP], shards(found[STEP])
    flip(features.folder, RECORD)
    flip_at(features.folder, features.shard_name(1), len(before[1]) // 2)
    check = Check(workspace.url, steps)
    assert any("run to seal it again" in line for line in check.lines(mend=True))
    assert check.wrong == 0
    make_step(steps[-1], found, lambda done, total, unit, note="": None)
    assert list(Check(workspace.url).lines()) == [f"{name}: as its record says" for name in (STEP, "images")]
    assert shards(features) == before


def test_nothing_is_made_where_nothing_is_wrong(grown, workspace: Folder, trap: Path):
    steps, found = grown
    record = found[STEP].folder.read(RECORD)
    check = Check(workspace.url, steps)
    assert list(check.lines(mend=True)) == [f"{name}: as its record says" for name in (STEP, "images")]
    assert diary(trap) == []
    assert found[STEP].folder.read(RECORD) == record
    assert check.as_json()["healed"] == {}


def test_what_is_made_as_a_whole_and_what_is_made_from_it_are_left(grown, workspace: Folder, trap: Path):
    steps, found = grown
    flip(found["images"].folder, "shard-00001.parquet")
    flip_at(found[STEP].folder, found[STEP].shard_name(0), spot(found[STEP], 0, 3))
    check = Check(workspace.url, steps)
    told = list(check.lines(mend=True))
    assert "images: 1 wrong, and left as they are. Run with --rebuild images" in told
    assert any(line.startswith(f"{STEP}: 2 wrong, and left as they are") for line in told)
    assert check.wrong == 3
    assert diary(trap) == []


def stored_anew(artifact: Artifact, number: int, change) -> None:
    """The shard as somebody would have stored it who stored something else: its digest is right."""
    artifact.write(number, artifact.table.rows([change(row) for row in artifact.read(number).to_pylist()]))  # type: ignore[union-attr]


def raised_by(amount: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        if row["error"]:
            return row
        stored = bf16_bits(SPEC.decode(row["feature"], row["height"], row["width"]) + amount).tobytes()
        return row | {"feature": stored, "crc": crc32(stored)}

    return change


def test_what_is_not_finite_is_found_though_its_digest_is_right(grown, workspace: Folder):
    _, found = grown
    stored_anew(found[STEP], 1, lambda row: {**row, "feature": b"\xff" * (row["size"] or 0)} if not row["error"] else row)
    assert set(check_shard(found[STEP], 1).faults.values()) == {"its bytes do not give its CRC"}
    stored_anew(found[STEP], 1, raised_by(np.inf))
    assert set(check_shard(found[STEP], 1).faults.values()) == {"it is not finite"}


def test_a_sample_made_again_is_the_same_and_says_so(grown, workspace: Folder, trap: Path):
    steps, _ = grown
    check = Check(workspace.url, steps)
    told = list(check.lines(again=12, seed=5))
    assert told[-1] == f"{STEP}: 12 rows made again, largest difference 0"
    drawn = diary(trap)
    assert len(drawn) == 12
    list(Check(workspace.url, steps).lines(again=12, seed=5))
    assert diary(trap) == drawn
    list(Check(workspace.url, steps).lines(again=12, seed=6))
    assert diary(trap) != drawn


def test_a_sample_convicts_features_that_are_others_and_a_warning_comes_before(grown, workspace: Folder, caplog):
    steps, found = grown
    record = found[STEP].record()
    stored_anew(found[STEP], 3, raised_by(3.0))
    found[STEP].seal(record.started, record.ended, {"images": found["images"]}, code="c", packages={})
    check = Check(workspace.url, steps)
    told = list(check.lines(again=SHARDS * ROWS))
    assert any("shard 3 drifts" in line for line in caplog.messages)
    assert len(caplog.messages) == 1
    assert check.wrong == ROWS
    assert 2.9 < check.compared[STEP].largest_difference < 3.1
    assert "made again, it differs by" in told[-1]


def test_without_the_project_nothing_can_be_made(grown, workspace: Folder):
    for wanted in ({"mend": True}, {"again": 3}):
        with pytest.raises(ConfigError, match="Name its TOML file"):
            list(Check(workspace.url).lines(**wanted))


def test_shards_of_one_pool_do_not_drift(rng: np.random.Generator):
    """However alike the channels of a picture, and however few rows a shard has; one that is moved does."""
    for _ in range(200):
        rows, strange = int(rng.integers(8, 100)), int(rng.integers(6))
        pool = rng.standard_normal((6, rows, 1)) + 0.3 * rng.standard_normal((6, rows, 32))
        checks = {n: ShardCheck(rows, {}, each.mean(axis=0), each.var(axis=0)) for n, each in enumerate(pool)}
        assert drifting(checks) == {}
        moved = replace(checks[strange], mean_C=checks[strange].mean_C + 4 * DRIFT * pool.std() / np.sqrt(rows))
        assert list(drifting(checks | {strange: moved})) == [strange]


def test_of_few_shards_or_rows_nothing_is_said(rng: np.random.Generator):
    far = [ShardCheck(rows, {}, np.full(4, 100.0 * rows), np.ones(4)) for rows in (7, 6, 5, 4, 3)]
    assert drifting(dict(enumerate(far))) == {}
    far = [ShardCheck(100, {}, np.full(4, 100.0 * n), np.ones(4)) for n in range(3)]
    assert drifting(dict(enumerate(far))) == {}
