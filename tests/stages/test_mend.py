"""Rows made anew: exactly those, the rest as it was, and an error that comes back counts its attempts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from schemas import tables
from schemas.artifact import Artifact
from schemas.regions import Rle, Segment
from schemas.row_errors import RowError
from schemas.storage import Folder
from schemas.tables import SEGMENTS, Table
from stages.base import Resources, Tables
from stages.executor import Work, run_map
from stages.mend import Published, mend, read_inputs
from tests.stages.grown import ROWS, SHARDS, SPEC, Grow, diary, flip, key, pictures, set_trap, spot


def quiet(done: int, total: int, unit: str, note: str = "") -> None:
    pass


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    set_trap(tmp_path / "trap", "nobody")
    return tmp_path / "trap"


@pytest.fixture
def work(workspace: Folder, trap: Path) -> Work:
    output = Artifact(workspace.child("features/tiny"), {"stage": "Grow"}, tables.features(SPEC), SHARDS, "features/tiny")
    resources = Resources(executor="local", batch=4, max_error_rate=0.5)
    return Work(Grow(trap=str(trap)), {"images": pictures(workspace.child("images"))}, {}, output, resources)


def shards(work: Work) -> list[bytes]:
    return [work.output.folder.read(work.output.shard_name(number)) for number in range(SHARDS)]


def error_of(work: Work, number: int, row: int) -> str:
    return work.output.read(number).column("error")[row].as_py()


def test_a_failed_row_is_tried_again_alone(work: Work, trap: Path):
    run_map(work, quiet)
    unbroken = shards(work)
    work.output.folder.remove()
    set_trap(trap, "2-7.png")
    run_map(work, quiet)
    diary(trap)
    assert RowError.parse(error_of(work, 2, 7)).attempts == 1
    for attempts in (2, 3):
        assert mend(work, 2, [7]).failed == 1
        assert RowError.parse(error_of(work, 2, 7)).attempts == attempts
    assert diary(trap) == []
    (trap / "2-7.png").unlink()
    assert mend(work, 2, [7]).failed == 0
    assert diary(trap) == ["2-7.png"]
    assert shards(work) == unbroken


def test_the_same_fault_keeps_its_trace(work: Work, trap: Path):
    set_trap(trap, "2-7.png")
    run_map(work, quiet)
    first = RowError.parse(error_of(work, 2, 7))
    mend(work, 2, [7])
    again = RowError.parse(error_of(work, 2, 7))
    assert (again.trace, again.message) == (first.trace, first.message)
    assert len(first.trace) == 8


def test_an_error_that_comes_with_the_picture_is_no_attempt(work: Work):
    run_map(work, quiet)
    before = shards(work)
    mend(work, 1, [ROWS - 1])
    assert error_of(work, 1, ROWS - 1) == "data: 1.jpg: cut short"
    assert shards(work) == before


def test_a_damaged_row_is_made_anew_and_the_rest_kept(work: Work, trap: Path):
    run_map(work, quiet)
    before = shards(work)
    diary(trap)
    flip(work.output.folder, work.output.shard_name(3), spot(work.output, 3, 2))
    assert shards(work) != before
    mend(work, 3, [2])
    assert diary(trap) == ["3-2.png"]
    assert shards(work) == before


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\0" * len(data), None]
)
def test_a_shard_that_cannot_be_read_is_made_whole(work: Work, trap: Path, damage):
    run_map(work, quiet)
    before = shards(work)
    diary(trap)
    name = work.output.shard_name(0)
    if damage is None:
        work.output.folder.remove(name)
    else:
        work.output.folder.write(name, damage(before[0]))
    mend(work, 0, [1])
    assert len(diary(trap)) == ROWS
    assert shards(work) == before


def test_a_row_of_another_picture_is_not_kept(work: Work, trap: Path):
    run_map(work, quiet)
    before = shards(work)
    diary(trap)
    name = work.output.shard_name(0)
    flip(work.output.folder, name, before[0].index(key(0, 5).encode()))
    mend(work, 0, [1])
    assert diary(trap) == ["0-1.png", "0-5.png"]
    assert shards(work) == before


def height(work: Work, number: int) -> int:
    """Where in its file the heights of a shard begin."""
    (column,) = work.output.read(number).column("height").chunks
    return shards(work)[number].index(column.buffers()[1].to_pybytes()[: 4 * ROWS])


def a_word_of_the_error(work: Work, number: int) -> int:
    return shards(work)[number].index(b"poison")


@pytest.mark.parametrize(("where", "again"), [(height, ["2-0.png", "2-3.png"]), (a_word_of_the_error, ["2-3.png"])])
def test_what_no_crc_covers_is_not_kept_where_the_digest_fails(
    work: Work, trap: Path, where: Callable[[Work, int], int], again: list[str]
):
    """Nor is a failed row, for nothing proves its error; it is tried, and it is its first attempt."""
    set_trap(trap, "2-7.png")
    run_map(work, quiet)
    before = shards(work)
    diary(trap)
    flip(work.output.folder, work.output.shard_name(2), where(work, 2))
    mend(work, 2, [3])
    assert diary(trap) == again
    assert shards(work) == before


def test_a_picture_that_could_not_be_decoded_is_kept_with_its_error(work: Work, trap: Path):
    run_map(work, quiet)
    before = shards(work)
    flip(work.output.folder, work.output.shard_name(1), spot(work.output, 1, 2))
    old = Published(work).old(1, read_inputs(work, 1))
    assert old
    assert (old.is_whole, old.doubtful) == (False, [2])
    mend(work, 1, [2])
    assert shards(work) == before


def test_a_map_on_the_grid_of_its_teacher_is_kept_by_the_digest_alone(work: Work, trap: Path):
    table = tables.features(SPEC.model_copy(update={"grid": "native"}))
    native = replace(work, output=replace(work.output, table=table))
    run_map(native, quiet)
    before = shards(native)
    diary(trap)
    mend(native, 3, [2])
    assert diary(trap) == ["3-2.png"]
    flip(native.output.folder, native.output.shard_name(3), spot(native.output, 3, 2))
    mend(native, 3, [2])
    assert len(diary(trap)) == ROWS
    assert shards(native) == before


class Thin(Grow):
    """Leaves one thing out of every picture that it looks at."""

    def table(self) -> Table:
        return SEGMENTS

    def grow(self, inputs: Tables, batch: int) -> pa.Table:
        made = super().grow(inputs, batch).select(["image_key", "error"]).to_pylist()
        rows = SEGMENTS.rows([{**row, "segments": []} for row in made])
        return tables.without(rows, {"small": sum(not row["error"] for row in made)})


@pytest.mark.parametrize("row", [4, 7])
def test_what_is_left_out_is_counted_once(work: Work, trap: Path, workspace: Folder, row: int):
    """Also where row 7 failed at first and row 4 did not."""
    output = Artifact(workspace.child("thin"), {"stage": "Thin"}, SEGMENTS, SHARDS, "thin")
    thin = replace(work, stage=Thin(trap=str(trap)), output=output)
    set_trap(trap, "2-7.png")
    run_map(thin, quiet)
    assert output.found()[2].left_out == {"small": ROWS - 1}
    (trap / "2-7.png").unlink()
    assert mend(thin, 2, [row]).left_out == {"small": ROWS}
    assert mend(thin, 2, [7, 4]).left_out == {"small": ROWS}


@pytest.mark.parametrize("witness", ["footer", "record"])
def test_rows_that_prove_nothing_are_kept_by_the_digest_alone(work: Work, trap: Path, workspace: Folder, witness: str):
    """By that in the footer, and where there is a record, by the one that it names."""
    output = Artifact(workspace.child("thin"), {"stage": "Thin"}, SEGMENTS, SHARDS, "thin")
    thin = replace(work, stage=Thin(trap=str(trap)), output=output)
    run_map(thin, quiet)
    unbroken = shards(thin)
    set_trap(trap, "2-7.png")
    mend(thin, 2, None)
    if witness == "record":
        output.seal("then", "now", work.inputs, code="c", packages={})
    rows = output.read(2).to_pylist()
    rows[4]["segments"] = [Segment(1, "ghost", True, False, 1.0, "nobody", Rle.of(np.ones((2, 2), bool)))]
    output.write(2, tables.without(SEGMENTS.rows(rows), {"small": ROWS - 1}))
    if witness == "footer":
        flip(output.folder, output.shard_name(2), shards(thin)[2].index(output.found()[2].digest.encode()))
    (trap / "2-7.png").unlink()
    mend(thin, 2, [7])
    assert shards(thin) == unbroken
