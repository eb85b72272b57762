"""A student on its way: from a checkpoint or from the beginning, a step at a time, and into checkpoints again.

A step moves the weights by a global batch, cut into micro-batches that the workers share out. Each loss is weighted by the
micro-batch's share of what it is a mean of (tokens, masks, pictures), so the sum is the loss of the whole batch however it
is cut; with `loss.compat = "paper"` every micro-batch weighs alike.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.errors import BrokenArtifact, NonFinite
from schemas.storage import Folder
from student.config import BaseConfig, LossConfig, OptimConfig, StudentConfig
from student.data.corpus import Corpus
from student.data.mixture import Order
from student.losses import EPSILON, Distillation, losses, share
from student.model import PixelSail
from student.sequence import IGNORED, Batch
from student.train_config import TrainConfig
from student.training import blocks, checkpoint, optim, parallel
from student.training.checkpoint import Checkpoint, Row
from student.training.saving import Copies, Saver
from student.training.spikes import is_spike
from student.vocabulary import Vocabulary
from student.weights import base
from student.weights.base import Started

METRICS, NONFINITE = "metrics.jsonl", "nonfinite.json"

Piece = tuple[int, Batch]  # a micro-batch and its place among those of its step


@dataclass(frozen=True)
class TrainSetup:
    """What a run is made of. `identity` is what its weights depend on; a checkpoint of another one is refused."""

    student: StudentConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    vocabulary: Vocabulary
    corpus: Corpus
    identity: Mapping[str, Any]
    base: BaseConfig | None = None
    device: str = "cpu"
    threads: int = 1

    def order(self) -> Order:
        return self.corpus.order(self.train.seed, self.train.mixture)


def initial_student(config: StudentConfig, vocabulary: Vocabulary, seed: int) -> PixelSail:
    """The student that every run of `seed` without a base starts from."""
    return PixelSail(config, vocabulary, torch.Generator().manual_seed(seed))


@dataclass
class Run:
    """A student on its way: its weights, what moves them, and a row of numbers for each step so far."""

    setup: TrainSetup
    student: PixelSail
    distillation: Distillation
    optimizer: torch.optim.Optimizer
    history: list[Row]
    started: Started | None = None  # what was taken from the base

    @classmethod
    def begin(cls, setup: TrainSetup, folder: Folder, saver: Saver) -> "Run":
        """From the latest checkpoint, or else from the initial weights; these become checkpoint 0 wherever it is not whole."""
        found = _found(setup, folder)
        student = initial_student(setup.student, setup.vocabulary, setup.train.seed)
        started = parallel.on_all(partial(_based, setup, student), setup.device)
        student = student.to(setup.device)
        distillation = _distillation(setup).to(setup.device)
        if parallel.worker()[0] == 0:
            saver.save(parallel.whole(_weights(student, distillation)), partial(_publish, setup, folder, []))
        training = found.training() if found else {}
        if found:
            student.load_state_dict(found.model())
            checkpoint.load_module(distillation, "distillation/", training)
        lay_out(setup, student, distillation)
        optimizer = optim.optimizer([*student.parameters(), *distillation.parameters()], setup.optim)
        run = cls(setup, student, distillation, optimizer, list(found.history) if found else [], started)
        if found:
            checkpoint.load_optimizer(optimizer, run.names, training)
        return run

    def save(self, folder: Folder, saver: Saver) -> None:
        """Begin to write a checkpoint and the metrics up to it: the first worker does, the others help it to whole tensors."""
        parallel.on_all(saver.settle, self.setup.device)
        tensors = _weights(self.student, self.distillation) | checkpoint.optimizer_tensors(self.optimizer, self.names)
        whole = parallel.whole(tensors)
        if parallel.worker()[0] == 0:
            saver.save(whole, partial(_publish, self.setup, folder, list(self.history)))
        elif parallel.is_sharded(self.student):
            deque(whole, maxlen=0)

    @property
    def names(self) -> list[str]:
        """Names of the optimizer's parameters, in its order."""
        pairs = (("student", self.student), ("distillation", self.distillation))
        return [f"{whose}.{name}" for whose, module in pairs for name, _ in module.named_parameters()]

    def advance(self, folder: Folder, number: int, pieces: Sequence[Piece], asked: Callable[[], bool]) -> bool:
        """One more step, and its row in the history: with the samples where it is a spike. Returns whether some worker is asked
        to leave; of what is not a number a file in `folder` tells first."""
        sample_ids = _sample_ids(pieces)
        try:
            row = self.step(number, pieces)
        except NonFinite as error:
            whole = parallel.joined(sample_ids)
            if parallel.worker()[0] == 0:
                told = {"step": number + 1, "what": error.what, "where": error.where, "sample_ids": whole}
                folder.write(NONFINITE, json.dumps(told, indent=1).encode())
            raise
        leaving, spike = parallel.anywhere([asked(), is_spike(self.history, row)], self.setup.device)
        if spike:
            row |= {"spike": True, "sample_ids": parallel.joined(sample_ids)}
        self.history.append(row)
        return leaving

    def step(self, number: int, pieces: Sequence[Piece]) -> Row:
        """Move the weights once, by this worker's pieces of the batch and by the others'; returns the step's numbers."""
        config, teachers = self.setup.train, list(self.distillation.teachers)
        sizes = [_sizes(batch, teachers) for _, batch in pieces]
        whole = parallel.summed(torch.stack(sizes).sum(dim=0).to(self.setup.device)).cpu()
        shares = [share(size, whole.clamp(min=EPSILON), config.micro_batches, self.setup.loss)[:-3] for size in sizes]
        found = parallel.on_all(
            lambda: torch.stack(list(map(partial(self._backward, number), pieces, shares))), self.setup.device
        )
        parallel.sum_gradients(parameter for group in self.optimizer.param_groups for parameter in group["params"])
        rate = optim.learning_rate(number, config.steps, self.setup.optim)
        norm = optim.step(self.optimizer, rate, self.setup.optim.clip, _sample_ids(pieces))
        values = parallel.summed(found.sum(dim=0)).tolist()
        parts = dict(zip(loss_names(teachers), values, strict=True))
        counts = {"tokens": int(whole[-1]), "dropped_turns": int(whole[-3]), "skipped": config.batch - int(whole[-2])}
        row = {"step": number + 1, "lr": rate, **parts, "total": sum(values), "grad_norm": norm}
        return row | {"samples": row["step"] * config.batch, **counts}

    def _backward(self, number: int, piece: Piece, share: Tensor) -> Tensor:
        """Add the piece's gradients; returns its part of each loss. share: of each loss, how much of the batch this is."""
        setup, (place, cpu_batch) = self.setup, piece
        batch = cpu_batch.to(setup.device)
        random = _generator(setup.device, setup.train.seed, number, place)
        with torch.autocast(torch.device(setup.device).type, torch.bfloat16, enabled=setup.train.precision == "bfloat16"):
            output = self.student(batch, every_picture=self.distillation.reads_mask_features)
            parts = losses(output, batch, self.distillation, setup.loss, random)
        check = partial(optim.check_finite, parts, batch.sample_ids)
        if parallel.is_sharded(self.student):  # the others would wait in the backward pass
            parallel.on_all(check, setup.device)
        else:
            check()
        shared = torch.stack([parts[name] for name in loss_names(self.distillation.teachers)]) * share.to(setup.device)
        (shared.sum() + output.anchor.float()).backward()
        return shared.detach()


def _found(setup: TrainSetup, folder: Folder) -> Checkpoint | None:
    """The latest checkpoint as the first worker sees it: all go on from one step, whatever else comes to lie there."""
    first = parallel.worker()[0] == 0
    found = parallel.on_all(lambda: checkpoint.latest(folder, setup.identity) if first else None, setup.device)
    step = parallel.gathered(found.step if found else None)[0]
    return parallel.on_all(lambda: found or _at(setup, folder, step), setup.device)


def _at(setup: TrainSetup, folder: Folder, step: int | None) -> Checkpoint | None:
    found = None if step is None else checkpoint.at(folder, step, setup.identity)
    if found is None and step is not None:
        raise BrokenArtifact(f"not every worker sees the checkpoint of step {step}", folder.url, "Run again.")
    return found


def _based(setup: TrainSetup, student: PixelSail) -> Started | None:
    return base.load(student, setup.vocabulary, setup.base, setup.train.seed) if setup.base else None


def lay_out(setup: TrainSetup, student: PixelSail, distillation: Distillation) -> None:
    """Have the blocks carried out, and the weights held, as the config says."""
    layers = list(student.single_transformer.model.layers)
    if setup.train.compile:
        blocks.compile_blocks(layers)
    if setup.train.recompute:
        blocks.recompute(layers)
    if setup.train.parallel == "fsdp" and parallel.worker()[1] > 1:
        parallel.shard([*layers, student, distillation], setup.device)


def _weights(student: PixelSail, distillation: Distillation) -> dict[str, Tensor]:
    """Of both, under names by which `_publish` tells them apart."""
    parts = (("model/", student), ("distillation/", distillation))
    return {prefix + name: value for prefix, module in parts for name, value in module.state_dict().items()}


def _publish(setup: TrainSetup, folder: Folder, history: Sequence[Row], tensors: Copies) -> None:
    """The checkpoint after the steps of `history`, with the metrics up to it, unless another run in `folder` is further. The
    initial student is put back in any case."""
    step = len(history)
    if step and checkpoint.has_later(folder, step, setup.identity):
        return
    if step:
        write_metrics(folder, history)
    checkpoint.write(
        folder,
        setup.identity,
        step=step,
        samples=step * setup.train.batch,
        history=history,
        model={name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")},
        training={name: value for name, value in tensors.items() if not name.startswith("model/")},
    )
    if step:
        checkpoint.prune(folder, step, setup.train.keep)


def _sample_ids(pieces: Sequence[Piece]) -> list[str]:
    return [sample_id for _, batch in pieces for sample_id in batch.sample_ids if sample_id]


def loss_names(teachers: Iterable[str]) -> list[str]:
    return ["lm", "mask", "dice", *(f"distill/{teacher}" for teacher in teachers)]


def _sizes(batch: Batch, teachers: Sequence[str]) -> Tensor:
    """How many things each loss is a mean of: tokens, masks twice, each teacher's pictures, as `losses` counts them; last
    the turns that were too long to be learned from, the samples, and all their tokens."""
    samples = sum(map(bool, batch.sample_ids))
    tokens = int((batch.next_labels_R != IGNORED).sum())
    masks = sum(batch.taught_masks) + EPSILON
    shown = [sum(teacher in features for features in batch.features) + EPSILON for teacher in teachers]
    return torch.tensor([tokens, masks, masks, *shown, batch.dropped, samples, len(batch.tokens_R) if samples else 0])


def write_metrics(folder: Folder, history: Sequence[Row]) -> None:
    folder.write(METRICS, "".join(json.dumps(row) + "\n" for row in history).encode())


def _distillation(setup: TrainSetup) -> Distillation:
    """The linears into the teachers' spaces; torch draws them from its global state, so that is set aside meanwhile."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.train.seed)
        return Distillation(setup.student, setup.loss, setup.corpus.columns)


def _generator(device: str, *seeds: int) -> torch.Generator:
    """A generator all of whose numbers follow from `seeds`."""
    (seed,) = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(seed))
