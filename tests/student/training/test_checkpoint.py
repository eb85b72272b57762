"""A checkpoint counts when it is whole and of this run; what is taken from an optimizer can be put back."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from schemas.errors import BrokenArtifact, StaleArtifact
from schemas.storage import Folder
from student.model import PixelSail
from student.training import checkpoint
from student.training.checkpoint import MODEL, STATE, TRAINING, Checkpoint
from tests.student.micro import micro_config, micro_vocabulary

RUN = {"stage": "train", "config": {"steps": 4, "betas": (0.9, 0.99)}}


def weights(value: float) -> dict[str, Tensor]:
    return {"b": torch.full((2, 3), value), "a": torch.arange(3.0)[:, None].expand(3, 2)}


def write(folder: Folder, step: int, identity: dict[str, Any] = RUN) -> Checkpoint:
    history = [{"step": number + 1, "total": 0.1 * number} for number in range(step)]
    return checkpoint.write(
        folder,
        identity,
        step=step,
        samples=8 * step,
        history=history,
        model=weights(step),
        training={"moment": torch.tensor(step)},
    )


def test_a_checkpoint_comes_back_as_it_was(store: Folder):
    written = write(store, 3)
    found = checkpoint.latest(store, RUN)
    assert found == written
    assert (found.step, found.samples, len(found.history)) == (3, 24, 3)
    assert all(torch.equal(found.model()[name], value) for name, value in weights(3).items())
    assert found.training()["moment"].item() == 3


def test_there_is_none_where_nothing_was_written(store: Folder):
    assert checkpoint.latest(store, RUN) is None


def test_the_newest_whole_one_counts(tmp_path):
    folder = Folder(str(tmp_path))
    for step in (0, 5, 100):
        write(folder, step)
    assert checkpoint.latest(folder, RUN).step == 100
    folder.remove(f"step-00000100/{STATE}")
    assert checkpoint.latest(folder, RUN).step == 5
    assert checkpoint.at(folder, 0, RUN).step == 0


@pytest.mark.parametrize("name", [MODEL, TRAINING, STATE])
def test_a_truncated_one_is_as_if_it_were_not(tmp_path, name: str):
    folder = Folder(str(tmp_path))
    write(folder, 5)
    write(folder, 10)
    place = folder.child("step-00000010")
    place.write(name, place.read(name)[:-1])
    assert checkpoint.latest(folder, RUN).step == 5


def test_changed_bytes_do_not_count(tmp_path):
    folder = Folder(str(tmp_path))
    write(folder, 5)
    data = bytearray((tmp_path / "step-00000005" / MODEL).read_bytes())
    data[-1] ^= 1
    (tmp_path / "step-00000005" / MODEL).write_bytes(data)
    assert checkpoint.latest(folder, RUN) is None


def test_another_run_is_refused_field_by_field(tmp_path):
    folder = Folder(str(tmp_path))
    write(folder, 5)
    with pytest.raises(StaleArtifact, match=r"config\.steps: 4 -> 9"):
        checkpoint.latest(folder, {**RUN, "config": {"steps": 9, "betas": (0.9, 0.99)}})


def test_the_same_state_gives_the_same_bytes(tmp_path):
    folders = [Folder(str(tmp_path / name)) for name in "ab"]
    for folder in folders:
        write(folder, 2)
    turned = dict(reversed(weights(2).items()))
    checkpoint.write(folders[1].child("turned"), RUN, step=2, samples=0, history=[], model=turned, training={})
    files = [{name: folder.read(f"step-00000002/{name}") for name in (MODEL, TRAINING, STATE)} for folder in folders]
    assert files[0] == files[1]
    assert folders[1].read(f"turned/step-00000002/{MODEL}") == files[0][MODEL]


def test_pruning_leaves_the_first_and_the_newest(tmp_path):
    folder = Folder(str(tmp_path))
    for step in (0, 5, 10, 15, 20):
        write(folder, step)
    checkpoint.prune(folder, newest=20, keep=3)
    assert checkpoint.steps(folder) == [0, 10, 15, 20]
    checkpoint.prune(folder, newest=20, keep=1)
    assert checkpoint.steps(folder) == [0, 20]


def test_pruning_leaves_what_a_faster_run_wrote(store: Folder):
    for step in (0, 5, 10, 15, 20):
        write(store, step)
    checkpoint.prune(store, newest=10, keep=1)
    assert checkpoint.steps(store) == [0, 10, 15, 20]


def test_pruning_takes_an_unfinished_one_only_when_nobody_can_be_writing_it(tmp_path: Path):
    folder = Folder(str(tmp_path))
    for step in (0, 5, 10, 15, 20):
        write(folder, step)
    for step in (5, 15, 20):
        folder.remove(f"step-{step:08d}/{STATE}")
    for path in [*tmp_path.glob("step-00000005/*"), *tmp_path.glob("step-00000020/*")]:
        os.utime(path, (0, 0))
    checkpoint.prune(folder, newest=10, keep=1)
    assert checkpoint.steps(folder) == [0, 10, 15]


def test_two_may_prune_at_once(tmp_path: Path):
    folder = Folder(str(tmp_path))
    for step in range(60):
        write(folder, step)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(partial(checkpoint.prune, folder, keep=1), [59] * 4))
    assert checkpoint.steps(folder) == [0, 59]


def test_a_whole_one_is_not_written_again_and_a_broken_one_is(tmp_path: Path):
    folder, model = Folder(str(tmp_path)), tmp_path / "step-00000005" / MODEL
    written, stamp = write(folder, 5), model.stat()
    assert write(folder, 5) == written
    assert model.stat().st_mtime_ns == stamp.st_mtime_ns
    model.write_bytes(b"")
    write(folder, 5)
    assert checkpoint.at(folder, 5, RUN) == written


def test_only_whole_ones_count_as_later(tmp_path: Path):
    folder = Folder(str(tmp_path))
    for step in (5, 10):
        write(folder, step)
    assert [checkpoint.has_later(folder, step, RUN) for step in (0, 5, 10)] == [True, True, False]
    folder.remove(f"step-00000010/{MODEL}")
    assert not checkpoint.has_later(folder, 5, RUN)


def test_the_state_names_no_path_and_no_time(tmp_path):
    write(Folder(str(tmp_path)), 1)
    state = json.loads((tmp_path / "step-00000001" / STATE).read_text())
    assert state.keys() == {"step", "samples", "fingerprint", "identity", "files", "history"}
    assert str(tmp_path) not in json.dumps(state)


def moved(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The weights after one more step on fixed numbers."""
    optimizer.zero_grad()
    module(torch.arange(8.0).reshape(2, 4)).square().sum().backward()
    optimizer.step()
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_an_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path):
    first, second = nn.Linear(4, 2), nn.Linear(4, 2)
    optimizers = [torch.optim.AdamW(module.parameters(), lr=0.1, fused=True) for module in (first, second)]
    moved(first, optimizers[0])
    names = [name for name, _ in first.named_parameters()]
    model, training = dict(first.state_dict()), checkpoint.optimizer_tensors(optimizers[0], names)
    checkpoint.write(Folder(str(tmp_path)), RUN, step=1, samples=0, history=[], model=model, training=training)
    found = checkpoint.latest(Folder(str(tmp_path)), RUN)
    second.load_state_dict(found.model())
    checkpoint.load_optimizer(optimizers[1], names, found.training())
    one, other = moved(first, optimizers[0]), moved(second, optimizers[1])
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("trained", [True, False])
def test_a_student_comes_back_ready_to_be_asked(tmp_path, trained: bool):
    folder, made = Folder(str(tmp_path)), {}
    for step in (0, 7):
        student = PixelSail(micro_config(), micro_vocabulary(), torch.Generator().manual_seed(step))
        made[step] = student.state_dict()
        checkpoint.write(folder, RUN, step=step, samples=0, history=[], model=made[step], training={})
    found = checkpoint.open_student(folder, micro_config(), micro_vocabulary(), trained=trained)
    assert not found.training
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in made[7 if trained else 0].items())


def test_a_folder_without_a_checkpoint_has_no_student(tmp_path):
    with pytest.raises(BrokenArtifact, match="no whole checkpoint"):
        checkpoint.open_student(Folder(str(tmp_path)), micro_config(), micro_vocabulary())
