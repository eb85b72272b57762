"""Faults at every boundary, again and again until an artifact is complete, and never a row lost, doubled or unverified.

What is promised, fault by fault. Always: a run without faults ends as the unbroken one, byte for byte; between faults what
counts is whole; no driver falls over with anything but an error of ours or of the system; what dead writers left is found
by `Folder.abandoned` when it is an hour old, and by nobody else.

- **SIGKILL, Ctrl-C** at any boundary, of the driver, a Ray worker or the raylet: the shard in hand is lost, no other.
- **Power cut**: what was said to be done is still done, whole, though names and bytes that were not fsynced go.
- **Full disk**, by quota, by tmpfs or from the n-th byte on: an error, and what was done is done.
- **A clock** that has jumped by days, either way: nobody sweeps a file that a living writer has in hand, as long as the disk
  knows locks. Where it knows none, age decides: a writer held up for an hour fails by name, and loses the shard in hand.
- **Two drivers at once**: the same bytes under the same names, so that neither harms the other.
- **A put that fails, unanswered, doubled, late or reordered; a read that fails, a listing that lags**: at worst a shard is
  made twice. The record is put only when every shard can be seen.
- **A put of an older run that lands after the seal** of a newer one: its shard does not count, and `verify` names it.
- **A put that is cut or flipped, and answered as well**: a cut shard does not count. A flipped one may, for digests are not
  held against the bytes at every start: `verify` names it and nothing that is well, and after it is deleted a run heals.

The same harness convicts the writer in `weak.py`, for which a file that opens is done.

`make chaos` runs the long form, and that control. A life is repeated by its number: `SAILYARD_CHAOS_SEED=17 pytest -m chaos
-k power` begins with `power-17`.
"""

import itertools
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.states import clear
from schemas.artifact import verify
from schemas.storage import Folder
from stages.base import Resources
from tests.chaos import judge, store, world
from tests.chaos.life import Lives, Verdict

Live = Callable[[Lives, str, int], Verdict]
LIVES: dict[str, Live] = {
    **dict.fromkeys(("kill", "power", "interrupt", "full", "quota"), Lives.on_disk),
    "two": Lives.of_two,
    "clock": Lives.of_clocks,
    "store-two": Lives.of_two,
}
STORES = [f"store-{kind}" for kind in store.KINDS]
FAULTS_A_KIND = 12
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("kind", "shards"), [("kill", 2), ("power", 1)])
def test_a_fault_at_every_boundary(kind, shards, lives_of, verdicts):
    assert every_boundary(lives_of(shards), kind, verdicts) > 13 * shards


@pytest.mark.parametrize("kind", [*LIVES, *STORES])
def test_a_life_under_faults(kind, lives_of, verdicts):
    live(lives_of(6), kind, 1, verdicts)


@pytest.mark.control
@pytest.mark.parametrize("kind", ["power", "interrupt"])
def test_the_harness_convicts_a_writer_for_whom_a_file_that_opens_is_done(kind, lives_of):
    lives = lives_of(6)
    assert not lives.at_boundary("calm", 0, weak=True).wrong
    ends = (line for seed in range(12) for line in lives.on_disk(kind, seed, weak=True).wrong if line.startswith("in the end"))
    assert any(".parquet is taken for done and is lost or wrong" in line for line in ends)


def test_make_chaos_holds_the_control_too():
    (line,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if line.endswith(" tests/chaos"))
    words = [*shlex.split(line.replace("$(BIN)/python", sys.executable)), "--collect-only", "-p", "no:cacheprovider"]
    chosen = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "test_lives_under_faults[kill]" in chosen
    assert "test_the_harness_convicts" in chosen


def test_a_put_of_an_older_run_that_lands_after_the_seal_is_named(tmp_path, rng):
    """Names are shared by all runs, so no store can refuse it; it neither counts nor goes unseen."""
    images = world.pool(Folder(str(tmp_path / "images")), 2, rng)
    old, new = (world.output(Folder(str(tmp_path / "made")), images, world.Bright(threshold=each)) for each in (90, 128))
    jobs = [world.work(images, each, Resources(executor="local")) for each in (old, new)]
    world.drive(jobs[0], quiet)
    late, _ = old.folder.read(old.shard_name(0)), clear(old)
    world.drive(jobs[1], quiet)
    good = new.folder.read(new.shard_name(0))
    new.folder.write(new.shard_name(0), late)
    assert set(new.found()) == {1}
    (fault,) = verify(new.folder)
    assert new.shard_name(0) in fault
    assert judge.heal(new) == [new.shard_name(0)]
    world.drive(jobs[1], quiet)
    assert new.folder.read(new.shard_name(0)) == good
    assert verify(new.folder) == []


def quiet(done: int, total: int, unit: str, note: str = "") -> None:
    pass


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["kill", "power", "interrupt"])
def test_a_fault_at_every_boundary_of_more_shards(kind, lives_of, verdicts):
    assert every_boundary(lives_of(4), kind, verdicts) > 60


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [*LIVES, *STORES])
def test_lives_under_faults(kind, lives_of, verdicts):
    live(lives_of(24), kind, FAULTS_A_KIND, verdicts)


@pytest.mark.chaos
def test_a_small_disk_that_is_made_larger(lives_of, verdicts, mount):
    sizes = [f"{size}k" for size in (8, 12, 24, 48, 96, 4096)]
    verdict = lives_of(24).on_small_disk("tmpfs", mount, sizes)
    assert len(judged(verdict, verdicts).faults) >= 3


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("victim", ["driver", "worker", "raylet"])
def test_kills_on_ray(victim, seed, lives_of, verdicts):
    judged(lives_of(40).on_ray(victim, seed), verdicts)


def live(lives: Lives, kind: str, least: int, verdicts: list[Verdict]) -> None:
    """Life after life, until there were `least` faults."""
    one, faults = LIVES.get(kind, Lives.in_store), 0
    for seed in itertools.count(int(os.environ.get("SAILYARD_CHAOS_SEED", "0"))):
        faults += len(judged(one(lives, kind, seed), verdicts).faults)
        if faults >= least:
            return


def every_boundary(lives: Lives, kind: str, verdicts: list[Verdict]) -> int:
    """How many there are."""
    for at in itertools.count(1):
        if not judged(lives.at_boundary(kind, at), verdicts).faults:
            return at - 1
    raise AssertionError


def judged(verdict: Verdict, verdicts: list[Verdict]) -> Verdict:
    verdicts.append(verdict)
    assert not verdict.wrong, str(verdict)
    return verdict
