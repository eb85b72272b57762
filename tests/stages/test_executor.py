"""The executor on real Ray: the same bytes everywhere, a dead worker costs one shard, and one that finds no room none."""

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from schemas.artifact import Artifact, verify
from schemas.config import parse
from schemas.errors import ConfigError, DataError, StageFailed
from schemas.storage import Folder
from schemas.tables import SEGMENTS, Table
from stages.base import Inputs, MapStage, Resources, ShardFunction, Tables
from stages.deadline import Pulse, heartbeat
from stages.executor import Work, run_map, start_ray

SHARDS = 6


class Copy(MapStage):
    """Copies its input. `trap` is a folder: a worker that finds `die-<key>`, `lose-<key>` or `stop-<key>` there dies, loses its
    store or hangs, once, and one that finds `raise-<key>` or `hang-<key>` does so for good."""

    trap: str | None = None

    def table(self) -> Table:
        return SEGMENTS

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        return self.copy

    def copy(self, inputs: Tables) -> pa.Table:
        rows = inputs["segments"]
        if self.trap:
            key = rows.column("image_key")[0].as_py()
            (Path(self.trap) / f"made-{key}-{os.getpid()}").touch()
            for trap in Path(self.trap).glob(f"*-{key}"):
                action = trap.name.split("-")[0]
                if action == "die":
                    trap.unlink()
                    os._exit(1)
                if action == "lose":
                    trap.unlink()
                    raise ConnectionResetError("the store hung up")
                if action == "stop":
                    trap.unlink()
                if action in ("hang", "stop"):
                    threading.Event().wait()
                if action == "raise":
                    raise DataError("the trap snapped", key)
        return rows


@pytest.fixture
def source(tmp_path) -> Artifact:
    artifact = Artifact(Folder(str(tmp_path / "source")), {"stage": "Source"}, SEGMENTS, SHARDS)
    for number in range(SHARDS):
        bad = {"error": "data: planted"} if number == 4 else {}
        artifact.write(number, SEGMENTS.rows([{"image_key": f"k{number}", "segments": [], **bad}]))
    artifact.seal("then", "now", {}, code="c", packages={})
    return artifact


def work(source: Artifact, folder: Path, executor: str = "local", workers: int = 1, trap: Path | None = None, **more) -> Work:
    stage = Copy(trap=str(trap) if trap else None)
    output = Artifact(Folder(str(folder)), {"stage": "Copy"}, SEGMENTS, SHARDS)
    resources = Resources(executor=executor, workers=workers, **{"max_error_rate": 0.5, **more})  # type: ignore[arg-type]
    return Work(stage, {"segments": source}, {}, output, resources)


def quiet(done: int, total: int, unit: str, note: str = "") -> None:
    pass


def shard_bytes(artifact: Artifact) -> list[bytes]:
    return [artifact.folder.read(artifact.shard_name(number)) for number in range(SHARDS)]


def test_local_and_ray_with_any_number_of_workers_write_the_same_bytes(source, tmp_path, ray_cluster):
    jobs = [work(source, tmp_path / "local")]
    jobs += [work(source, tmp_path / f"ray{n}", "ray", n) for n in (1, 2, 3)]
    for job in jobs:
        told: list[tuple[int, int]] = []
        outcome = run_map(job, lambda done, total, unit, note="", told=told: told.append((done, total)))
        assert told == [(number + 1, SHARDS) for number in range(SHARDS)]
        assert outcome.failures == ["shard 4: k4: data: planted"]
    assert len({tuple(shard_bytes(job.output)) for job in jobs}) == 1


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_only_missing_shards_are_made(source, tmp_path, executor, ray_cluster):
    trap = tmp_path / "trap"
    trap.mkdir()
    job = work(source, tmp_path / "out", executor, 2, trap)
    run_map(job, quiet)
    before = shard_bytes(job.output)
    for path in trap.iterdir():
        path.unlink()
    job.output.folder.remove(job.output.shard_name(3))
    assert run_map(job, quiet).summary["shards_made"] == 1
    assert {path.name.split("-")[1] for path in trap.iterdir()} == {"k3"}
    assert shard_bytes(job.output) == before


def test_a_killed_worker_costs_one_shard(source, tmp_path, ray_cluster):
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "die-k1").touch()
    job = work(source, tmp_path / "out", "ray", 2, trap)
    run_map(job, quiet)
    made = sorted(path.name.split("-")[1] for path in trap.glob("made-*"))
    assert made == sorted([f"k{number}" for number in range(SHARDS)] + ["k1"])


@pytest.mark.timeout(60)
def test_all_other_shards_are_made_and_all_that_were_lost_are_named(source, tmp_path, ray_cluster):
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("die-k1", "die-x-k1", "die-k3", "die-x-k3"):
        (trap / name).touch()
    job = work(source, tmp_path / "out", "ray", 1, trap, attempts=2)
    with pytest.raises(StageFailed, match="2 shards were lost .1, 3.: shard 1 lost its worker 2 times: .*; shard 3 lost its"):
        run_map(job, quiet)
    assert sorted(job.output.found()) == [0, 2, 4, 5]


def test_a_lost_connection_is_no_fault_of_a_shard(source, tmp_path, ray_cluster):
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "lose-k1").touch()
    job = work(source, tmp_path / "out", "ray", 1, trap)
    run_map(job, quiet)
    pids = [path.name.split("-")[2] for path in trap.glob("made-k1-*")]
    assert len(pids) == 2, "the worker that lost the connection took the shard up again itself"
    (trap / "lose-k1").touch()
    (trap / "lose-again-k1").touch()
    job.output.folder.remove()
    with pytest.raises(StageFailed, match="shard 1 lost its worker 2 times: infra: ConnectionResetError: the store hung up"):
        run_map(work(source, tmp_path / "out", "ray", 1, trap, attempts=2), quiet)


@pytest.mark.timeout(60)
def test_a_worker_that_hangs_is_told_of_and_given_up_at_its_deadline(source, tmp_path, ray_cluster, caplog):
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "stop-k5").touch()
    job = work(source, tmp_path / "out", "ray", 1, trap, deadline_s=3)
    run_map(job, quiet)
    assert len(job.output.found()) == SHARDS
    stalls, gave_up = caplog.messages
    assert re.match(r"shard 5 stalls: \S+:[0-9]+ has been at it since [0-9:]{8}, for [0-9]+ s", stalls)
    assert "shard 5 took longer than its deadline" in gave_up
    assert "in copy" in gave_up, "the stacks do not show where it hung"
    job.output.seal("then", "now", {}, code="c", packages={})
    assert verify(job.output.folder) == []


@pytest.mark.timeout(60)
def test_a_shard_that_hangs_every_worker_is_named(source, tmp_path, ray_cluster):
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "hang-k0").touch()
    with pytest.raises(StageFailed, match=r"shard 0 lost its worker 2 times: infra: it took longer than deadline_s.*stacks-"):
        run_map(work(source, tmp_path / "out", "ray", 1, trap, deadline_s=0.5, attempts=2), quiet)


@pytest.mark.timeout(60)
def test_what_hangs_in_this_process_is_an_error(source, tmp_path):
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "hang-k2").touch()
    job = work(source, tmp_path / "out", "local", 1, trap, deadline_s=1.5)
    with pytest.raises(StageFailed, match="shard 2 took longer than deadline_s = 1.5") as error:
        run_map(job, quiet)
    assert sorted(job.output.found()) == [0, 1]
    (log,) = (tmp_path / "out").glob("stacks-*.txt")
    assert str(log) in error.value.remedy
    assert "in copy" in log.read_text()


class Slow(Copy):
    """Copies its input row group by row group. The first shard has many, each of which takes a third of a deadline."""

    def copy(self, inputs: Tables) -> pa.Table:
        for _ in range(3 if inputs["segments"].column("image_key")[0].as_py() == "k0" else 0):
            threading.Event().wait(0.7)
            heartbeat()
        return inputs["segments"]


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_shard_that_goes_on_may_take_longer_than_the_deadline(source, tmp_path, executor, ray_cluster):
    job = work(source, tmp_path / "out", executor, 2, deadline_s=2)
    run_map(replace(job, stage=Slow()), quiet)
    assert sorted(job.output.found()) == list(range(SHARDS))


@pytest.mark.timeout(60)
def test_what_hangs_is_given_up_where_nothing_is_said_of_a_deadline(source, tmp_path, ray_cluster, monkeypatch):
    monkeypatch.setattr("stages.deadline.SURE_S", 1.0)
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "hang-k1").touch()
    job = work(source, tmp_path / "out", "ray", 2, trap, attempts=2)
    with pytest.raises(StageFailed, match="shard 1 lost its worker 2 times: infra: it took longer than sound work can"):
        run_map(job, quiet)
    assert sorted(job.output.found()) == [0, 2, 3, 4, 5]


class Stalling(Copy):
    """Copies its input at once, but for the third shard."""

    def copy(self, inputs: Tables) -> pa.Table:
        if inputs["segments"].column("image_key")[0].as_py() == "k2":
            threading.Event().wait(2.6)
        return inputs["segments"]


def test_what_stalls_in_this_process_is_told_of(source, tmp_path, caplog):
    job = work(source, tmp_path / "out")
    run_map(replace(job, stage=Stalling()), quiet)
    assert len(job.output.found()) == SHARDS
    (told,) = caplog.messages
    assert told.startswith("shard 2 stalls: ")


def test_no_silence_is_too_long_that_sound_work_may_take():
    day, half_an_hour = 86400, 1800
    assert Pulse().allowed == day
    assert Pulse(known=1.0).allowed == half_an_hour
    assert Pulse(known=600.0).allowed == 20 * 600
    assert Pulse(known=1.0, longest=600.0).allowed == 20 * 600
    assert Pulse(deadline_s=5.0, known=600.0).allowed == 5


@pytest.mark.timeout(60)
def test_a_straggler_holds_nobody_up(source, tmp_path, ray_cluster):
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "stop-k3").touch()
    job = work(source, tmp_path / "out", "ray", 2, trap)
    outcome = run_map(job, quiet)
    assert outcome.summary["shards_made"] == SHARDS
    assert len(job.output.found()) == SHARDS
    assert len(list(trap.glob("made-k3-*"))) == 2


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_our_errors_come_back_as_themselves(source, tmp_path, executor, ray_cluster):
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "raise-k2").touch()
    with pytest.raises(DataError, match="k2: the trap snapped"):
        run_map(work(source, tmp_path / "out", executor, 2, trap), quiet)


def test_too_many_failed_rows_fail_the_stage_after_the_rest_is_done(source, tmp_path):
    job = work(source, tmp_path / "out", max_error_rate=0.1)
    with pytest.raises(StageFailed, match="1 of 6 rows failed.*k4: data: planted"):
        run_map(job, quiet)
    assert len(job.output.found()) == SHARDS


@pytest.fixture
def no_ray(ray_cluster) -> Iterator[None]:
    """Whatever Ray this process was in is gone, and so is the one that the test starts; `run_map` starts another."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()


@pytest.mark.timeout(60)
def test_workers_for_which_there_is_no_room_hold_nobody_up(source, tmp_path, no_ray):
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "die-k1").touch()
    job = work(source, tmp_path / "out", "ray", 3, trap)
    run_map(job, quiet)
    assert len(job.output.found()) == SHARDS
    assert ray.cluster_resources()["CPU"] == 1, "a Ray that somebody else started was replaced"


def test_a_ray_of_our_own_grows_with_the_step_and_joins_none_by_chance(ray_cluster, monkeypatch):
    import ray

    start_ray(Resources())
    node, cores = ray.get_runtime_context().get_node_id(), int(ray.cluster_resources()["CPU"])
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    start_ray(Resources(workers=cores))
    assert ray.get_runtime_context().get_node_id() == node
    start_ray(Resources(workers=cores, threads=2))
    assert ray.cluster_resources()["CPU"] == 2 * cores


@pytest.mark.timeout(60)
def test_a_worker_killed_for_its_memory_costs_one_shard(source, tmp_path, no_ray):
    import ray

    greedy = {"memory_usage_threshold": 0.0, "memory_monitor_refresh_ms": 50}
    run_map(work(source, tmp_path / "out"), quiet)
    Folder(str(tmp_path / "out")).remove("shard-00000.parquet")  # the only one that is left to make: none could be
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _system_config=greedy)
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "hang-k0").touch()
    with pytest.raises(StageFailed, match="shard 0 lost its worker 2 times: infra: OutOfMemoryError"):
        run_map(work(source, tmp_path / "out", "ray", 1, trap, attempts=2), quiet)


@pytest.mark.parametrize(
    ("name", "value"),
    [("workers", 0), ("threads", 0), ("batch", 0), ("attempts", 0), ("gpus", -1), ("max_error_rate", 1.5)],
)
def test_resources_that_cannot_be_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"resources.*{name}: Input should be"):
        parse(Resources, {name: value}, "resources")
