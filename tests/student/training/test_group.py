"""Two workers learn what one does, and stop together."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from schemas.artifact import Artifact
from schemas.errors import ConfigError, MissingLibrary, NonFinite, Preempted
from schemas.storage import Folder
from student.data.corpus import Corpus
from student.train_config import TrackingConfig, TrainConfig
from student.training import checkpoint, torchrun
from student.training.run import TrainSetup
from student.training.train import train
from tests.student.data.test_corpus import with_long_answer
from tests.student.micro import micro_config, micro_vocabulary
from tests.student.stores import SPECS, Store, write_store
from tests.student.training.test_train import (
    RUN,
    TWELVE,
    asked_after,
    nothing,
    open_setup,
    poisoned,
)


@contextmanager
def group(rank: int, folder: Path) -> Iterator[None]:
    with torchrun.joined("cpu", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2):
        yield
        dist.barrier()  # nobody hangs up while the other is still speaking


def threads_of_gloo() -> list[str]:
    """A group's threads in this process."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


FOUR = TrainConfig(steps=4, batch=4, micro_batch=2, checkpoint_every=2)
LONG = TrainConfig(steps=9, batch=2, micro_batch=1)
ODD = TrainConfig(steps=1, batch=3, micro_batch=1)
SHORT = micro_config(max_length=150)


def long_setup(store: Store, config: TrainConfig, **changes: Any) -> TrainSetup:
    """Over the samples of `with_long_answer`, of which a student that reads so little has to skip one."""
    samples = Artifact.sealed(store.folder.child("long/samples"))
    parts = {"samples": samples, "images": store.images, "features": store.features}
    corpus = Corpus(**parts, vocabulary=micro_vocabulary(), config=SHORT, **changes)
    return open_setup(store, config, student=SHORT, corpus=corpus)


def eve_setup(store: Store, **changes: Any) -> TrainSetup:
    """A student in the layout of EVEv2."""
    config = micro_config(patch=8, eve={"channels": 6, "side": 24})
    parts = {"samples": store.samples, "images": store.images, "features": store.features}
    corpus = Corpus(**parts, vocabulary=micro_vocabulary(), config=config)
    return open_setup(store, FOUR.model_copy(update=changes), student=config, corpus=corpus)


def skipped_in(setup: TrainSetup) -> list[int]:
    """How often each step meets the sample that is too long, which is the second of the corpus."""
    order, size = setup.order(), setup.train.batch
    steps = (order.between(step * size, (step + 1) * size) for step in range(setup.train.steps))
    return [sum(visit.sample == 1 for visit in visits) for visits in steps]


def worker(rank: int, folder: Path, said: "multiprocessing.Queue[str]") -> None:
    """As one of two: a good run, one that holds slices and is asked to leave, one in which a worker has nothing to learn from
    for a step, one of pieces that two cannot share, and one in which some worker meets a bad number, slices or not."""
    store = open_store(folder)
    with group(rank, folder):
        train(open_setup(store, FOUR), store.folder.child("two"), nothing)
        sliced = open_setup(store, FOUR.model_copy(update={"parallel": "fsdp", "recompute": True}))
        for steps in (1, 2):  # what it leaves after the first is taken up by the second, and by one worker alone after that
            with pytest.raises(Preempted):
                train(sliced, store.folder.child("sliced"), nothing, asked_after(steps) if rank == 1 else lambda: False)
        bad = poisoned_by(rank, store, folder)
        bad_sliced = open_setup(bad, TWELVE.model_copy(update={"parallel": "fsdp"}))
        longer = long_setup(store, LONG.model_copy(update={"parallel": "fsdp"}))
        train(longer, store.folder.child("long-two"), nothing)
        train(eve_setup(store), store.folder.child("eve-two"), nothing)
        train(eve_setup(store, parallel="fsdp", recompute=True), store.folder.child("eve-sliced"), nothing)
        (folder / "file").touch()
        untold = open_setup(store, FOUR.model_copy(update={"tracking": TrackingConfig(tensorboard=str(folder / "file"))}))
        setups = {"odd": open_setup(store, ODD), "bad": open_setup(bad), "bad-sliced": bad_sliced, "untold": untold}
        for name, setup in setups.items():
            try:
                train(setup, store.folder.child(name), nothing)
            except (ConfigError, NonFinite) as error:
                said.put(str(error))
            except (MissingLibrary, OSError):  # no tensorboard, or no folder for it
                said.put("a tracker cannot be opened")


def open_store(folder: Path) -> Store:
    root = Folder(str(folder / "store"))
    made = {name: Artifact.sealed(root.child(f"features/{name}"), f"features/{name}") for name in SPECS}
    return Store(root, Artifact.sealed(root.child("images")), Artifact.sealed(root.child("samples")), made)


def poisoned_by(rank: int, store: Store, folder: Path) -> Store:
    """Each worker writes its own copy, so that neither waits for the other's."""
    place = replace(store, folder=Folder(str(folder / f"copy-{rank}")))
    return replace(poisoned(place, np.random.default_rng(0)), folder=store.folder)


def test_two_workers_learn_what_one_does_and_stop_together(tmp_path: Path, rng: np.random.Generator):
    store = write_store(Folder(str(tmp_path / "store")), rng)
    train(open_setup(store, FOUR), store.folder.child("one"), nothing)
    with_long_answer(store.samples, store.folder.child("long"))
    alone = long_setup(store, LONG)
    train(alone, store.folder.child("long-one"), nothing)
    train(eve_setup(store), store.folder.child("eve-one"), nothing)
    spawn = multiprocessing.get_context("spawn")
    said = spawn.Queue()
    other = spawn.Process(target=worker, args=(1, tmp_path, said), daemon=True)
    other.start()
    worker(0, tmp_path, said)
    assert not threads_of_gloo()
    other.join(60)
    assert other.exitcode == 0
    assert checkpoint.latest(store.folder.child("sliced"), RUN).step == 3
    train(open_setup(store, FOUR), store.folder.child("sliced"), nothing)
    one, *others = (checkpoint.latest(store.folder.child(name), RUN) for name in ("one", "two", "sliced"))
    for other in others:
        assert [row["samples"] for row in one.history] == [row["samples"] for row in other.history]
        for mine, theirs in zip(one.history, other.history, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4, rel=1e-3)
    eve, *others = (checkpoint.latest(store.folder.child(name), RUN) for name in ("eve-one", "eve-two", "eve-sliced"))
    for other in others:
        for mine, theirs in zip(eve.history, other.history, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4, rel=1e-3)
        torch.testing.assert_close(other.model(), eve.model(), rtol=0, atol=1e-5)
    long_one, long_two = (checkpoint.latest(store.folder.child(name), RUN).history for name in ("long-one", "long-two"))
    assert [row["skipped"] for row in long_one] == [row["skipped"] for row in long_two] == skipped_in(alone)
    assert [row["total"] for row in long_one] == pytest.approx([row["total"] for row in long_two], abs=1e-4, rel=1e-3)
    told = [said.get(timeout=10) for _ in range(8)]
    assert told.count("a tracker cannot be opened") == 2
    odd, bad = sorted({*told} - {"a tracker cannot be opened"}, reverse=True)
    assert odd.startswith("train.micro_batch: 3 micro-batches a step cannot be shared by 2 workers")
    assert "loss distill/sam2 = nan" in bad
