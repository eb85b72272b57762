"""A picture that kills or hangs its worker is named, on real Ray, and costs the shard no other row."""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas import tables
from schemas.artifact import Artifact
from schemas.errors import StageFailed
from schemas.storage import Folder
from stages.base import Resources
from stages.culprits import culprits
from stages.executor import Work, run_map
from tests.stages.grown import ROWS, SHARDS, SPEC, Grow, pictures, set_trap


class Deadly(Grow):
    """A picture that is in the trap as `die` ends the process, one that is there as `hang` never ends."""

    def _make(self, rows: Any) -> list[dict[str, Any]]:
        for row in rows:
            trap = Path(self.trap) / row["aliases"][0]
            if trap.exists():
                os._exit(1) if trap.read_text() == "die" else threading.Event().wait()
        return super()._make(rows)


def quiet(done: int, total: int, unit: str, note: str = "") -> None:
    pass


def work(stage: Grow, images: Artifact, folder: Path, **resources: Any) -> Work:
    output = Artifact(Folder(str(folder)), {"stage": "Grow"}, tables.features(SPEC), SHARDS, "features/tiny")
    return Work(stage, {"images": images}, {}, output, Resources(**{"max_error_rate": 0.5, **resources}))


@pytest.mark.timeout(120)
def test_a_picture_that_takes_its_worker_with_it_is_named_and_all_others_are_made(tmp_path, ray_cluster):
    images, trap = pictures(Folder(str(tmp_path / "images"))), tmp_path / "trap"
    set_trap(trap, "none")
    sound = work(Grow(trap=str(trap)), images, tmp_path / "sound", executor="local")
    run_map(sound, quiet)
    set_trap(trap, "0-9.png", "die")
    set_trap(trap, "2-9.png", "hang")
    job = work(Deadly(trap=str(trap)), images, tmp_path / "out", attempts=1, deadline_s=2)
    run_map(job, quiet)
    why = {0: "ActorDiedError", 2: "it was silent for too long"}
    for number in range(SHARDS):
        expected = sound.output.read(number)
        if number in why:
            assert job.output.read(number)["error"][-1].as_py() == f"code: alone, it took its worker with it: {why[number]}"
            assert job.output.read(number)["feature"][-1].as_py() is None
            expected = expected.slice(0, ROWS - 1)
        assert job.output.read(number).slice(0, len(expected)).equals(expected)


def lethal(rows: set[int], kind: type[Exception]) -> Callable[[Sequence[int]], None]:
    """An attempt that fails for every group with any of these rows."""

    def attempt(group: Sequence[int]) -> None:
        if rows & set(group):
            raise kind("gone")

    return attempt


def test_every_row_that_kills_alone_is_named_with_its_reason_and_none_that_was_chance():
    assert culprits(10, lethal({2, 7}, RuntimeError), 2) == {
        row: "code: alone, it took its worker with it: gone [attempt 2]" for row in (2, 7)
    }
    assert culprits(10, lethal({5}, MemoryError), 1) == {5: "capacity: alone, it took its worker with it: gone"}
    chance = iter([True, True, True])

    def unlucky(group: Sequence[int]) -> None:
        if next(chance, False):
            raise RuntimeError("gone")

    assert culprits(8, unlucky, 3) == {}


def test_what_kills_with_every_row_is_no_fault_of_the_rows():
    with pytest.raises(StageFailed, match="50 workers were lost"):
        culprits(1000, lethal(set(range(1000)), RuntimeError), 3)
