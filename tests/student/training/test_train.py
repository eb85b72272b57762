"""A run that was killed ends as one that was not, and bad numbers move nothing."""

import json
import os
import signal
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import BrokenArtifact, DataError, NonFinite, Preempted, StaleArtifact
from schemas.storage import Folder
from schemas.tables import features
from student.data.corpus import Corpus
from student.sequence import collate
from student.train_config import TrainConfig
from student.training import checkpoint
from student.training.run import METRICS, NONFINITE, Run, TrainSetup, initial_student
from student.training.saving import Saver
from student.training.train import train
from tests.student.micro import micro_config, micro_vocabulary
from tests.student.stores import FAST, SPECS, Store, feature_rows, sealed, small_loss, write_store

RUN = {"stage": "train", "version": 1}
TWELVE = TrainConfig(steps=12, batch=4, micro_batch=2, checkpoint_every=5, log_every=1)


def open_setup(store: Store, config: TrainConfig = TWELVE, **changes: Any) -> TrainSetup:
    parts = {"samples": store.samples, "images": store.images, "features": store.features}
    corpus = Corpus(**parts, vocabulary=micro_vocabulary(), config=micro_config())
    fields = {"student": micro_config(), "loss": small_loss(), "optim": FAST, "train": config, "identity": RUN}
    return TrainSetup(**{**fields, "vocabulary": micro_vocabulary(), "corpus": corpus, **changes})


def nothing(row: dict[str, Any]) -> None:
    """A report that nobody reads."""


class Killed(Exception):
    pass


def kill_at(step: int):
    def report(row: dict[str, Any]) -> None:
        if row["step"] == step:
            raise Killed

    return report


def asked_after(checks: int) -> Callable[[], bool]:
    """Whether to leave: at the last of so many looks."""
    left = iter(range(checks))
    return lambda: next(left, 0) == checks - 1


def files(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.tree()}


@pytest.fixture
def unbroken(small_store: Store) -> Folder:
    folder = small_store.folder.child("unbroken")
    train(open_setup(small_store), folder, nothing)
    return folder


def test_a_run_leaves_its_checkpoints_and_a_line_for_each_step(unbroken: Folder):
    assert checkpoint.steps(unbroken) == [0, 10, 12]
    rows = [json.loads(line) for line in unbroken.read(METRICS).splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["samples"] for row in rows] == list(range(4, 49, 4))
    losses = ["lm", "mask", "dice", "distill/sam2", "distill/mask2former"]
    assert list(rows[0]) == ["step", "lr", *losses, "total", "grad_norm", "samples", "tokens", "dropped_turns", "skipped"]
    assert all(row["total"] == pytest.approx(sum(row[name] for name in losses)) for row in rows)


def test_a_killed_run_ends_as_an_unbroken_one(small_store: Store, unbroken: Folder):
    folder = small_store.folder.child("killed")
    for step in (3, 7, 12):
        with pytest.raises(Killed):
            train(open_setup(small_store), folder, kill_at(step))
    assert checkpoint.steps(folder) == [0, 5, 10]
    train(open_setup(small_store), folder, nothing)
    assert files(folder) == files(unbroken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_that_is_asked_to_leave_saves_its_step_and_goes_on_from_it(small_store: Store, unbroken: Folder, number: int):
    folder, before = small_store.folder.child("asked"), signal.getsignal(number)
    with pytest.raises(Preempted, match="asked to leave after step 4, which is saved. Run again"):
        train(open_setup(small_store), folder, lambda row: os.kill(os.getpid(), number) if row["step"] == 3 else None)
    assert signal.getsignal(number) == before
    assert checkpoint.latest(folder, RUN).step == 4
    told: list[int] = []
    train(open_setup(small_store), folder, lambda row: told.append(row["step"]))
    assert told == list(range(4, 13)), "what is shown, and then a row a step"
    assert files(folder) == files(unbroken)


def test_who_is_asked_to_leave_at_the_last_step_has_finished(small_store: Store, unbroken: Folder):
    folder = small_store.folder.child("late")
    train(open_setup(small_store), folder, nothing, asked_after(TWELVE.steps))
    assert files(folder) == files(unbroken)


def test_a_checkpoint_without_its_state_is_made_again(small_store: Store, unbroken: Folder):
    expected = files(unbroken)
    unbroken.remove("step-00000012/state.json")
    unbroken.remove(METRICS)
    told: list[int] = []
    train(open_setup(small_store), unbroken, lambda row: told.append(row["step"]))
    assert told == [10, 11, 12]
    assert files(unbroken) == expected


def test_a_finished_run_is_left_as_it_is(small_store: Store, unbroken: Folder):
    expected = files(unbroken)
    unbroken.remove(METRICS)
    summary = train(open_setup(small_store), unbroken, kill_at(12))
    assert files(unbroken) == expected
    assert (summary["samples"], summary["spikes"]) == (48, 0)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json"])
def test_the_untrained_student_is_put_back_where_it_lacks(small_store: Store, unbroken: Folder, name: str):
    expected = files(unbroken)
    unbroken.remove(f"step-00000000/{name}")
    train(open_setup(small_store), unbroken, kill_at(12))
    assert files(unbroken) == expected


def test_a_run_that_lost_the_untrained_student_does_not_end_well(small_store: Store):
    folder = small_store.folder.child("lost")
    with pytest.raises(BrokenArtifact, match="no whole checkpoint of step 0 at the end"):
        train(open_setup(small_store), folder, lambda row: folder.remove("step-00000000/model.safetensors"))
    train(open_setup(small_store), folder, nothing)
    assert checkpoint.at(folder, 0, RUN)


def test_a_slower_run_leaves_a_faster_one_alone(small_store: Store, unbroken: Folder):
    """The faster one runs from beginning to end while the slower one is at its third step."""
    expected, folder = files(unbroken), small_store.folder.child("both")
    seen: list[bool] = []

    def slower(row: dict[str, Any]) -> None:
        if row["step"] == 3:
            train(open_setup(small_store), folder, nothing)
        if row["step"] >= 3:
            seen.append(files(folder) == expected)

    train(open_setup(small_store), folder, slower)
    assert seen == [True] * 10
    assert files(folder) == expected


def test_readers_and_checkpoints_change_no_number(small_store: Store, unbroken: Folder):
    other = replace(open_setup(small_store), train=TWELVE.model_copy(update={"checkpoint_every": 4, "readers": 3, "ahead": 5}))
    folder = small_store.folder.child("other")
    train(other, folder, nothing)
    assert folder.read(METRICS) == unbroken.read(METRICS)
    assert folder.read("step-00000012/model.safetensors") == unbroken.read("step-00000012/model.safetensors")


def test_checkpoint_zero_is_the_untrained_student(unbroken: Folder):
    start, fresh = checkpoint.at(unbroken, 0, RUN), initial_student(micro_config(), micro_vocabulary(), TWELVE.seed)
    assert all(torch.equal(value, start.model()[name]) for name, value in fresh.state_dict().items())
    other = initial_student(micro_config(), micro_vocabulary(), TWELVE.seed + 1)
    assert not torch.equal(other.single_transformer.lm_head.weight, fresh.single_transformer.lm_head.weight)


def test_a_run_learns(small_store: Store):
    config = TrainConfig(steps=60, batch=4, micro_batch=4, checkpoint_every=60)
    summary = train(open_setup(small_store, config), small_store.folder.child("longer"), nothing)
    assert summary["last"]["lm"] < 0.5 * summary["first"]["lm"]
    assert summary["last"]["distill/sam2"] < summary["first"]["distill/sam2"]
    assert summary["samples_per_second"] > 0


def test_micro_batches_change_the_sum_only_by_rounding(small_store: Store):
    """Without masks, whose points are drawn for each micro-batch, the gradient is that of the whole batch."""
    loss = small_loss(mask=0.0, dice=0.0)
    rows = []
    for size in (4, 1):
        config = TrainConfig(steps=2, batch=4, micro_batch=size)
        folder = small_store.folder.child(f"by-{size}")
        train(open_setup(small_store, config, loss=loss), folder, nothing)
        rows.append(checkpoint.latest(folder, RUN).history[-1])
    assert rows[0] == pytest.approx(rows[1], rel=1e-3)


def test_half_precision_is_another_run_with_finite_numbers(small_store: Store):
    config = TrainConfig(steps=3, batch=4, micro_batch=4)
    folders = [small_store.folder.child(precision) for precision in ("float32", "bfloat16")]
    for folder in folders:
        precise = config.model_copy(update={"precision": folder.url.rsplit("/", 1)[-1]})
        train(open_setup(small_store, precise), folder, nothing)
    last = checkpoint.latest(folders[1], RUN)
    assert {tensor.dtype for tensor in (*last.model().values(), *last.training().values())} == {torch.float32}
    full, half = (checkpoint.latest(folder, RUN).history for folder in folders)
    assert full != half
    assert [row["total"] for row in full] == pytest.approx([row["total"] for row in half], rel=0.1)


def test_another_run_is_refused(small_store: Store, unbroken: Folder):
    with pytest.raises(StaleArtifact, match="version: 1 -> 2"):
        train(open_setup(small_store, identity={**RUN, "version": 2}), unbroken, nothing)


def test_a_corpus_of_nothing_is_refused(tmp_path: Path, rng: np.random.Generator):
    store = write_store(Folder(str(tmp_path)), rng, pictures=2)
    with pytest.raises(DataError, match="no samples to train on"):
        train(open_setup(store), store.folder.child("none"), nothing)


def test_turns_that_are_too_long_are_counted(small_store: Store):
    """Where both turns of a dialogue do not fit, the second goes, and is said to have gone."""
    short = micro_config(max_length=66)
    parts = {"samples": small_store.samples, "images": small_store.images, "features": small_store.features}
    corpus = Corpus(**parts, vocabulary=micro_vocabulary(), config=short)
    setup = open_setup(small_store, TrainConfig(steps=1, batch=18, micro_batch=9), student=short, corpus=corpus)
    folder = small_store.folder.child("short")
    train(setup, folder, nothing)
    dropped = sum(corpus[number].dropped for number in range(len(corpus)))
    assert dropped == 6
    assert checkpoint.latest(folder, RUN).history[0]["dropped_turns"] == dropped


def poisoned(store: Store, rng: np.random.Generator) -> Store:
    """The store with one picture whose SAM 2 feature holds what is not a number."""
    rows = [feature_rows(rng, SPECS["sam2"], artifact["image_key"].to_pylist()) for artifact in store.images.iterate()]
    rows[0][1]["feature"] = np.full((SPECS["sam2"].channels, *SPECS["sam2"].grid), 0x7FC0, "<u2").tobytes()
    rows[0][1]["crc"] = zlib.crc32(rows[0][1]["feature"])
    table = features(SPECS["sam2"])
    made = sealed(store.folder.child("poisoned"), "features/sam2", table, [table.rows(shard) for shard in rows])
    return replace(store, features=store.features | {"sam2": made})


def bad_samples(setup: TrainSetup) -> list[int]:
    key = f"0{1:031x}"
    return [number for number in range(len(setup.corpus)) if setup.corpus.sample(number).image_key == key]


def first_bad_step(setup: TrainSetup) -> int:
    order, bad, size = setup.corpus.order(setup.train.seed, setup.train.mixture), bad_samples(setup), setup.train.batch
    batches = ({visit.sample for visit in order.between(step * size, (step + 1) * size)} for step in range(100))
    return next(step for step, samples in enumerate(batches) if samples & set(bad))


def batch_of(setup: TrainSetup, step: int) -> list[str]:
    """The samples of a step, as they come."""
    order, size = setup.corpus.order(setup.train.seed, setup.train.mixture), setup.train.batch
    return [setup.corpus.sample(visit.sample).sample_id for visit in order.between(step * size, (step + 1) * size)]


def test_what_was_not_a_number_is_forgotten_by_a_run_that_ends_well(small_store: Store, unbroken: Folder):
    expected = files(unbroken)
    unbroken.write(NONFINITE, b"{}")
    train(open_setup(small_store), unbroken, nothing)
    assert files(unbroken) == expected


def test_numbers_that_are_none_stop_before_the_weights_move(small_store: Store, rng: np.random.Generator):
    config = TrainConfig(steps=20, batch=2, micro_batch=1, checkpoint_every=1)
    setup, folder = open_setup(poisoned(small_store, rng), config), small_store.folder.child("run")
    stopped = first_bad_step(setup)
    with pytest.raises(NonFinite, match=r"samples 0{31}1-\w+-0: loss distill/sam2 = nan"):
        train(setup, folder, nothing)
    assert checkpoint.latest(folder, RUN).step == stopped
    told = json.loads(folder.read(NONFINITE))
    assert (told["step"], told["what"]) == (stopped + 1, "loss distill/sam2 = nan, total = nan")
    assert told["sample_ids"] == batch_of(setup, stopped)


def test_a_step_that_fails_leaves_the_weights(small_store: Store, rng: np.random.Generator):
    setup = open_setup(poisoned(small_store, rng))
    with Saver() as saver:
        run = Run.begin(setup, small_store.folder.child("run"), saver)
    before = {name: value.clone() for name, value in run.student.state_dict().items()}
    good, bad = (collate([setup.corpus[number]]) for number in (0, bad_samples(setup)[0]))
    with pytest.raises(NonFinite, match=bad.sample_ids[0]):
        run.step(0, [(0, good), (1, bad)])
    assert all(torch.equal(before[name], value) for name, value in run.student.state_dict().items())


def test_a_step_that_jumps_is_told_with_its_samples(small_store: Store):
    setup, folder = open_setup(small_store), small_store.folder.child("run")
    with Saver() as saver:
        run = Run.begin(setup, folder, saver)
    run.history = [{"total": 0.1, "grad_norm": 0.1}] * 30
    batch = collate([setup.corpus[0], setup.corpus[1]])
    assert not run.advance(folder, 30, [(0, batch)], lambda: False)
    assert run.history[-1]["spike"] is True
    assert run.history[-1]["sample_ids"] == list(batch.sample_ids)
