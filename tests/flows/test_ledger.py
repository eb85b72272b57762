"""The ledger: failed rows are listed, exactly they are tried again, and what is waived no longer counts."""

import json
from pathlib import Path

import pytest

from flows.config import Project
from flows.graph import Step, artifacts, steps_of
from flows.ledger import Ledger, as_table
from flows.states import clear, state_of
from flows.steps import make_step
from schemas.artifact import RECORD, Artifact, verify
from schemas.config import parse, read_toml
from schemas.errors import ConfigError, StageFailed
from schemas.storage import Folder
from stages.base import Resources
from tests.flows.small import sailyard
from tests.flows.tiny import Notes
from tests.stages.grown import ROWS, SHARDS, Grow, Pictures, diary, key, set_trap

STEP = "features/tiny"


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """Two pictures fail, of two classes, and one that could not be decoded."""
    set_trap(tmp_path / "trap", "2-7.png", "data")
    set_trap(tmp_path / "trap", "0-3.png", "code")
    return tmp_path / "trap"


def steps(trap: Path, max_error_rate: float = 0.1) -> list[Step]:
    local = Resources(executor="local", batch=4, max_error_rate=max_error_rate)
    loose = local.model_copy(update={"max_error_rate": 0.5})
    return [
        Step("images", "build_data", Pictures(), {}, {}, SHARDS, loose),
        Step(STEP, "build_data", Grow(trap=str(trap)), {"images": "images"}, {}, SHARDS, local),
        Step("noted", "build_data", Notes(), {STEP: STEP}, {}, SHARDS, local),
    ]


def carry_out(chain: list[Step], workspace: Folder) -> dict[str, Artifact]:
    found = artifacts(chain, workspace)
    for step in chain:
        make_step(step, found, lambda done, total, unit, note="": None)
    return found


def test_every_failed_row_is_listed(trap: Path, workspace: Folder):
    carry_out(steps(trap), workspace)
    entries = list(Ledger(steps(trap), workspace).entries())
    listed = {(each.step, each.shard, each.row, each.key, each.kind) for each in entries}
    assert listed == {
        ("images", 1, ROWS - 1, key(1, ROWS - 1), "data"),
        (STEP, 1, ROWS - 1, key(1, ROWS - 1), "data"),
        (STEP, 2, 7, key(2, 7), "data"),
        (STEP, 0, 3, key(0, 3), "code"),
    }
    poison = next(each for each in entries if each.kind == "code")
    assert (poison.attempts, poison.message, poison.waived) == (1, "ValueError: 0-3.png is poison", None)
    assert len(poison.trace) == 8
    assert as_table(entries).count("\n") == len(entries)


def test_a_retry_makes_the_failed_rows_of_its_class_and_seals_again(trap: Path, workspace: Folder):
    found = carry_out(steps(trap), workspace)
    before = found[STEP].record()
    diary(trap)
    for name in ("2-7.png", "0-3.png"):
        (trap / name).unlink()
    (retried,) = Ledger(steps(trap), workspace, STEP).retry("data")
    assert diary(trap) == ["2-7.png"]
    assert (retried.step, retried.tried, retried.still, retried.made_from_it) == (STEP, 2, 1, ["noted"])
    after = found[STEP].record()
    assert before and after
    assert (after.started, after.failed) == (before.started, before.failed - 1)
    assert after.summary["rows_made_again"] == 2
    assert [line.split(": ")[1] for line in after.failures] == [key(0, 3), key(1, ROWS - 1)]
    assert verify(found[STEP].folder) == []
    assert state_of(found["noted"], {STEP: found[STEP]}).by_inputs, "what was made without the row does not know"


def test_what_fails_again_counts_its_attempts_and_changes_nothing_else(trap: Path, workspace: Folder):
    found = carry_out(steps(trap), workspace)
    for attempts in (2, 3):
        (retried,) = Ledger(steps(trap), workspace).retry("code")
        assert (retried.tried, retried.still) == (1, 1)
        (entry,) = (each for each in Ledger(steps(trap), workspace).entries() if each.kind == "code")
        assert entry.attempts == attempts
    assert state_of(found[STEP]).kind == "done"


def test_a_retry_of_a_step_that_failed_leaves_the_seal_to_the_run(trap: Path, workspace: Folder):
    strict = steps(trap, 0.03)  # one row of forty
    with pytest.raises(StageFailed, match="3 of 40 rows failed"):
        carry_out(strict, workspace)
    for name in ("2-7.png", "0-3.png"):
        (trap / name).unlink()
    for kind in ("data", "code"):
        list(Ledger(strict, workspace).retry(kind))
    assert not workspace.exists(f"{STEP}/{RECORD}")
    diary(trap)
    assert state_of(carry_out(strict, workspace)[STEP]).kind == "done"
    assert diary(trap) == []


def test_a_retry_that_breaks_off_leaves_what_a_run_completes(trap: Path, workspace: Folder):
    found = carry_out(steps(trap), workspace)
    set_trap(trap, "2-7.png", "infra")
    with pytest.raises(ConnectionError):
        list(Ledger(steps(trap), workspace, STEP).retry("data"))
    assert state_of(found[STEP]).kind == "partial"
    carry_out(steps(trap), workspace)
    assert verify(found[STEP].folder) == []
    assert [each.kind for each in Ledger(steps(trap), workspace, STEP).entries()] == ["code", "data", "data"]


def test_what_is_waived_no_longer_counts_and_stands_in_the_record(trap: Path, workspace: Folder):
    strict = steps(trap, 0.0)
    with pytest.raises(StageFailed, match="3 of 40 rows failed"):
        carry_out(strict, workspace)
    ledger = Ledger(strict, workspace, STEP)
    assert len(ledger.waive("bought broken", "data")) == 2
    with pytest.raises(StageFailed, match="1 of 40 rows failed.*0-3.png is poison"):
        carry_out(strict, workspace)
    assert len(ledger.waive("known fault", key=key(0, 3))) == 1
    assert ledger.waive("known fault", key=key(0, 3)) == []
    record = carry_out(strict, workspace)[STEP].record()
    assert record is not None
    assert [line.rsplit(" (waived: ")[1] for line in record.failures] == ["known fault)", "bought broken)", "bought broken)"]
    assert record.failed == 3
    assert {each.waived for each in ledger.entries()} == {"known fault", "bought broken"}


def test_what_is_waived_of_a_picture_holds_wherever_it_is_the_reason(trap: Path, workspace: Folder):
    for name in ("2-7.png", "0-3.png"):
        (trap / name).unlink()
    strict = steps(trap, 0.0)
    with pytest.raises(StageFailed, match="1 of 40 rows failed"):
        carry_out(strict, workspace)
    Ledger(strict, workspace, "images").waive("bought broken")
    set_trap(trap, "1-0.png")
    workspace.child(STEP).remove()
    with pytest.raises(StageFailed, match="1 of 40 rows failed.*1-0.png is poison"):
        carry_out(strict, workspace)
    (trap / "1-0.png").unlink()
    list(Ledger(strict, workspace).retry("data"))
    record = carry_out(strict, workspace)[STEP].record()
    assert record
    assert [line.rsplit(" (waived: ")[1] for line in record.failures] == ["bought broken)"]


def test_a_waiver_comes_into_a_record_that_is_there_and_ends_with_the_class(trap: Path, workspace: Folder):
    found = carry_out(steps(trap), workspace)
    before = found[STEP].record()
    Ledger(steps(trap), workspace, STEP).waive("known fault", "code")
    after = found[STEP].record()
    assert before and after
    assert after.digest == before.digest
    assert sum("(waived: known fault)" in line for line in after.failures) == 1
    set_trap(trap, "0-3.png", "data")
    list(Ledger(steps(trap), workspace).retry("code"))
    entry = next(each for each in Ledger(steps(trap), workspace).entries() if each.key == key(0, 3))
    assert (entry.kind, entry.waived) == ("data", None)


def test_what_means_nothing_is_told_so(trap: Path, workspace: Folder):
    carry_out(steps(trap), workspace)
    with pytest.raises(ConfigError, match="no failed row is meant"):
        Ledger(steps(trap), workspace, STEP).waive("why not", "capacity")
    with pytest.raises(ConfigError, match="there is no step featuers"):
        Ledger(steps(trap), workspace, "featuers")
    with pytest.raises(ConfigError, match="without a reason"):
        Ledger(steps(trap), workspace, STEP).waive(" ")


def test_a_picture_whose_file_is_mended_comes_with_a_rebuild(micro: Path):
    """A run keeps what is there, and no row of the pool can be made alone: the picture's key says in which shard it lies."""
    project = parse(Project, read_toml(micro), str(micro))
    source, images = steps_of(project)[:2]
    found, told = artifacts([source, images], Folder(project.workspace)), lambda done, total, unit, note="": None
    make_step(source, found, told)
    victim = next(Path(project.workspace).glob("source/**/*.jpg"))
    whole = victim.read_bytes()
    victim.write_bytes(bytes(len(whole)))
    with pytest.raises(StageFailed, match="Mend the files and run with --rebuild images, "):
        make_step(images, found, told)
    victim.write_bytes(whole)
    with pytest.raises(StageFailed, match="1 of 8 rows failed"):
        make_step(images, found, told)
    clear(found["images"])  # as --rebuild does
    assert make_step(images, found, told).failed == 0


def test_on_the_command_line_a_broken_picture_is_listed_and_waived(micro: Path, tmp_path: Path):
    project = parse(Project, read_toml(micro), str(micro))
    source, images = steps_of(project)[:2]
    found, told = artifacts([source, images], Folder(project.workspace)), lambda done, total, unit, note="": None
    make_step(source, found, told)
    victim = next(Path(project.workspace).glob("source/**/*.jpg"))
    victim.write_bytes(bytes(victim.stat().st_size))
    with pytest.raises(StageFailed, match="1 of 8 rows failed"):
        make_step(images, found, told)
    (entry,) = json.loads(sailyard("ledger", micro, "--json").stdout)
    assert (entry["step"], entry["kind"], entry["attempts"], entry["waived"]) == ("images", "data", 1, None)
    assert sailyard("retry", micro, "--class", "infra").returncode == 2
    done = sailyard("waive", micro, "--step", "images", "--key", entry["key"], "--why", "lost in the post")
    assert (done.returncode, done.stdout) == (0, "1 more rows waived\n"), done.stderr
    make_step(images, found, told)
    assert "(waived: lost in the post)" in sailyard("ledger", micro).stdout
    record = found["images"].record()
    assert record and record.failures[0].endswith("(waived: lost in the post)")
