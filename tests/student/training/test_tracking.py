"""What a step takes is measured apart from the history, and shown wherever the config says."""

import itertools
import sys
from pathlib import Path

import pytest

from schemas.errors import MissingLibrary
from student.train_config import TrackingConfig, TrainConfig
from student.training import checkpoint
from student.training.tracking import Pace
from student.training.train import train
from tests.student.stores import Store
from tests.student.training.test_train import RUN, Killed, kill_at, open_setup


def test_the_pace_is_of_a_step_and_of_all_so_far():
    pace = Pace("cpu", clock=itertools.count(0.0, 2.0).__next__)  # two seconds between any two looks
    first, second = (pace.step({"tokens": tokens}, samples=4, waited=0.5, flops=10**12) for tokens in (100, 300))
    assert (first["samples_per_second"], first["tokens_per_second"], first["data_wait"]) == (2.0, 50.0, 0.25)
    assert second["tokens_per_second"] == 150.0
    total = pace.total()
    assert (total["seconds"], total["tokens_per_second"], total["samples_per_second"]) == (6.0, 400 / 6, 8 / 6)
    assert total["peak_bytes"] > 1 << 20
    assert (first["tflop_per_second"], total["tflop_per_second"]) == (0.5, 2 / 6)
    assert "mfu" not in total  # nobody says what a CPU could do


def test_the_report_tells_the_pace_and_the_history_does_not(small_store: Store):
    rows, folder = [], small_store.folder.child("run")
    config = TrainConfig(steps=2, batch=4, micro_batch=4, log_every=1)
    summary = train(open_setup(small_store, config), folder, rows.append)
    measured = {"steps", "seconds", "samples_per_second", "tokens_per_second", "data_wait", "tflop_per_second", "peak_bytes"}
    assert all(row.keys() >= measured and 0 <= row["data_wait"] <= 1 for row in rows)
    assert summary.keys() >= measured
    assert not checkpoint.latest(folder, RUN).history[0].keys() & measured


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_not_there_is_named(small_store: Store, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    for module in (name, "torch.utils.tensorboard"):  # torch keeps its own name for the one
        monkeypatch.setitem(sys.modules, module, None)
    tracking = TrackingConfig(**{name: str(tmp_path)})
    setup = open_setup(small_store, TrainConfig(steps=2, batch=4, micro_batch=4, tracking=tracking))
    with pytest.raises(MissingLibrary, match=rf"train.tracking.{name}: .* pip install 'sailyard\[{name}\]'"):
        train(setup, small_store.folder.child("run"), lambda row: None)


def broken_and_resumed(store: Store, **tracking: str) -> list[float]:
    """The total loss of each step of a run that was killed at its fifth step and resumed from its third."""
    config = TrainConfig(steps=6, batch=4, micro_batch=4, log_every=1, checkpoint_every=3, tracking=TrackingConfig(**tracking))
    folder = store.folder.child("run")
    with pytest.raises(Killed):
        train(open_setup(store, config), folder, kill_at(5))
    train(open_setup(store, config), folder, lambda row: None)
    return [row["total"] for row in checkpoint.latest(folder, RUN).history]


@pytest.mark.tracking
def test_tensorboard_shows_each_step_once(small_store: Store, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = broken_and_resumed(small_store, tensorboard=str(tmp_path / "events"))
    (run,) = (tmp_path / "events").iterdir()
    found = EventAccumulator(str(run)).Reload()
    assert {"lr", "grad_norm", "tokens_per_second", "data_wait", "peak_bytes"} <= set(found.Tags()["scalars"])
    events = found.Scalars("total")
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events] == pytest.approx(losses)


@pytest.mark.tracking
@pytest.mark.filterwarnings("default")
def test_mlflow_goes_on_under_the_run_that_was_resumed(small_store: Store, tmp_path: Path):
    from mlflow import MlflowClient

    place = f"sqlite:///{tmp_path}/mlflow.db"
    losses = broken_and_resumed(small_store, mlflow=place)
    client = MlflowClient(place)
    (run,) = client.search_runs([client.get_experiment_by_name("sailyard").experiment_id])
    assert run.info.status == "FINISHED"
    by_step = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "total")}
    assert [by_step[step] for step in range(1, 7)] == pytest.approx(losses)
