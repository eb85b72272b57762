"""The training loop. It runs alone, or once on each worker of a `torch.distributed` group that somebody else has made.

A step moves the weights by a global batch, cut into micro-batches that the workers share out. Each loss is weighted by the
micro-batch's share of what it is a mean of (tokens, masks, pictures), so the sum is the loss of the whole batch however it
is cut. Everything random in a step is drawn from (seed, step, micro-batch): a run that was killed and resumed ends with the
weights and the history of one that was not, bit for bit on CPUs with the same number of threads.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from schemas.errors import BrokenArtifact, ConfigError, DataError, SailyardError
from schemas.storage import Folder
from student import checkpoint, optim
from student.checkpoint import Checkpoint, Row
from student.config import LossConfig, OptimConfig, StudentConfig
from student.data import Corpus, Order, ahead
from student.losses import EPSILON, Distillation, losses
from student.model import PixelSail
from student.sequence import IGNORED, Batch, collate
from student.train_config import TrainConfig
from student.vocabulary import Vocabulary

METRICS = "metrics.jsonl"
AVERAGED = 20  # steps at either end that the summary takes a mean of

MadeT = TypeVar("MadeT")
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
    device: str = "cpu"
    threads: int = 1


def train(setup: TrainSetup, folder: Folder, report: Callable[[Row], None]) -> Row:
    """Train in `folder` from its latest whole checkpoint to the last step; returns the summary.

    folder: gets `step-…/` and `metrics.jsonl`, a line a step. report: told the newest step's numbers and the speed.
    Raises NonFinite, naming the samples, before a step would move the weights by what is not a number; BrokenArtifact where,
    at the end, the untrained or the trained student is not whole in `folder`.
    """
    config, started, (rank, _) = setup.train, time.perf_counter(), _worker()
    with _arithmetic(setup):
        run = Run.begin(setup, folder)
        first = len(run.history)
        coming = ahead(_pieces(setup), range(first, config.steps), depth=config.ahead, threads=config.readers)
        with closing(coming):
            for number in range(first, config.steps):
                run.history.append(run.step(number, _on_all(partial(next, coming), setup.device)))
                done, seconds = number + 1, time.perf_counter() - started
                if rank == 0 and (done % config.log_every == 0 or done == config.steps):
                    report(run.history[-1] | _speed(setup, done - first, seconds))
                if done % config.checkpoint_every == 0 or done == config.steps:
                    run.save(folder)
        if rank == 0:
            _write_metrics(folder, run.history)
        _on_all(partial(_demand_ends, setup, folder), setup.device)
    return _summary(setup, run) | _speed(setup, len(run.history) - first, time.perf_counter() - started)


def initial_student(config: StudentConfig, vocabulary: Vocabulary, seed: int) -> PixelSail:
    """The untrained student every run of `seed` starts from."""
    return PixelSail(config, vocabulary, torch.Generator().manual_seed(seed))


@dataclass
class Run:
    """A student on its way: its weights, what moves them, and a row of numbers for each step so far."""

    setup: TrainSetup
    student: PixelSail
    distillation: Distillation
    optimizer: torch.optim.Optimizer
    history: list[Row]

    @classmethod
    def begin(cls, setup: TrainSetup, folder: Folder) -> "Run":
        """From the latest checkpoint, or else from the initial weights; these become checkpoint 0 wherever it is not whole."""
        found = checkpoint.latest(folder, setup.identity)
        _wait()
        student = initial_student(setup.student, setup.vocabulary, setup.train.seed).to(setup.device)
        distillation = _distillation(setup).to(setup.device)
        optimizer = optim.optimizer([*student.parameters(), *distillation.parameters()], setup.optim)
        run = cls(setup, student, distillation, optimizer, [])
        if _worker()[0] == 0:
            run.write(folder)
        _wait()
        if found:
            run.load(found)
        return run

    def load(self, found: Checkpoint) -> None:
        tensors = found.training()
        self.student.load_state_dict(found.model())
        checkpoint.load_module(self.distillation, "distillation/", tensors)
        checkpoint.load_optimizer(self.optimizer, self.names, tensors)
        self.history = list(found.history)

    def save(self, folder: Folder) -> None:
        """Write a checkpoint and the metrics up to it, unless another run in `folder` is further; the first worker does, the
        others wait."""
        step = len(self.history)
        if _worker()[0] == 0 and not checkpoint.has_later(folder, step, self.setup.identity):
            _write_metrics(folder, self.history)
            self.write(folder)
            checkpoint.prune(folder, step, self.setup.train.keep)
        _wait()

    def write(self, folder: Folder) -> None:
        step = len(self.history)
        linears = {f"distillation/{name}": value for name, value in self.distillation.state_dict().items()}
        checkpoint.write(
            folder,
            self.setup.identity,
            step=step,
            samples=step * self.setup.train.batch,
            history=self.history,
            model=self.student.state_dict(),
            training=linears | checkpoint.optimizer_tensors(self.optimizer, self.names),
        )

    @property
    def names(self) -> list[str]:
        """Names of the optimizer's parameters, in its order."""
        pairs = (("student", self.student), ("distillation", self.distillation))
        return [f"{whose}.{name}" for whose, module in pairs for name, _ in module.named_parameters()]

    def step(self, number: int, pieces: Sequence[Piece]) -> Row:
        """Move the weights once, by this worker's pieces of the batch and by the others'; returns the step's numbers."""
        config, teachers = self.setup.train, list(self.distillation.teachers)
        sizes = [_sizes(batch, teachers) for _, batch in pieces]
        whole = _summed(torch.stack(sizes).sum(dim=0).to(self.setup.device)).cpu()
        shares = [(size / whole)[:-1] for size in sizes]
        found = _on_all(lambda: torch.stack(list(map(partial(self._backward, number), pieces, shares))), self.setup.device)
        self._sum_gradients()
        sample_ids = [sample_id for _, batch in pieces for sample_id in batch.sample_ids]
        rate = optim.learning_rate(number, config.steps, self.setup.optim)
        norm = optim.step(self.optimizer, rate, self.setup.optim.clip, sample_ids)
        values = _summed(found.sum(dim=0)).tolist()
        parts = dict(zip(_loss_names(teachers), values, strict=True))
        rest = {"grad_norm": norm, "samples": (number + 1) * config.batch, "dropped_turns": int(whole[-1])}
        return {"step": number + 1, "lr": rate, **parts, "total": sum(values), **rest}

    def _backward(self, number: int, piece: Piece, share: Tensor) -> Tensor:
        """Add the piece's gradients; returns its part of each loss. share: of each loss, how much of the batch this is."""
        setup, (place, cpu_batch) = self.setup, piece
        batch = cpu_batch.to(setup.device)
        random = _generator(setup.device, setup.train.seed, number, place)
        with torch.autocast(torch.device(setup.device).type, torch.bfloat16, enabled=setup.train.precision == "bfloat16"):
            output = self.student(batch, every_picture=self.distillation.reads_mask_features)
            parts = losses(output, batch, self.distillation, setup.loss, random)
        optim.check_finite(parts, batch.sample_ids)
        shared = torch.stack([parts[name] for name in _loss_names(self.distillation.teachers)]) * share.to(setup.device)
        (shared.sum() + output.anchor.float()).backward()
        return shared.detach()

    def _sum_gradients(self) -> None:
        """Every worker gets the sum of all workers' gradients, which is the gradient of the whole batch.

        In one message: a hundred small ones cost more than the step's arithmetic.
        """
        if _worker()[1] == 1:
            return
        gradients = [parameter.grad for group in self.optimizer.param_groups for parameter in group["params"]]
        summed = _summed(torch.cat([gradient.flatten() for gradient in gradients]))
        pieces = summed.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


def _loss_names(teachers: Iterable[str]) -> list[str]:
    return ["lm", "mask", "dice", *(f"distill/{teacher}" for teacher in teachers)]


def _sizes(batch: Batch, teachers: Sequence[str]) -> Tensor:
    """How many things each loss is a mean of: tokens, masks twice, each teacher's pictures, as `losses` counts them; last
    the turns that were too long to be learned from."""
    tokens = int((batch.next_labels_R != IGNORED).sum())
    masks = sum(len(masks) for masks in batch.masks) + EPSILON
    shown = [sum(teacher in features for features in batch.features) + EPSILON for teacher in teachers]
    return torch.tensor([tokens, masks, masks, *shown, batch.dropped])


def _pieces(setup: TrainSetup) -> Callable[[int], list[Piece]]:
    """The function from a step to this worker's pieces of its batch."""
    config, corpus, (rank, workers) = setup.train, setup.corpus, _worker()
    if len(corpus) == 0:
        raise DataError(f"no samples to train on ({dict(corpus.dropped)} left out)", "the training corpus")
    if config.micro_batches % workers:
        what = f"{config.micro_batches} micro-batches a step cannot be shared by {workers} workers"
        raise ConfigError(what, "train.micro_batch", "Make batch / micro_batch a multiple of the number of workers.")
    each, order = config.micro_batches // workers, Order(config.seed, len(corpus))

    def pieces(number: int) -> list[Piece]:
        places = range(rank * each, (rank + 1) * each)
        starts = [number * config.batch + place * config.micro_batch for place in places]
        chosen = [order.between(start, start + config.micro_batch) for start in starts]
        batches = [collate(corpus.examples(samples)) for samples in chosen]
        return list(zip(places, batches, strict=True))

    return pieces


def _distillation(setup: TrainSetup) -> Distillation:
    """The linears into the teachers' spaces; torch draws them from its global state, so that is set aside meanwhile."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.train.seed)
        return Distillation(setup.student, setup.loss, setup.corpus.columns)


def _generator(device: str, *seeds: int) -> torch.Generator:
    """A generator all of whose numbers follow from `seeds`."""
    (seed,) = np.random.SeedSequence(seeds).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(seed))


@contextmanager
def _arithmetic(setup: TrainSetup) -> Iterator[None]:
    """Torch with the setup's threads and, on CPUs, nothing but operations that repeat bit for bit."""
    threads, repeats = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(setup.threads)
    torch.use_deterministic_algorithms(setup.device == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(repeats)


def _worker() -> tuple[int, int]:
    """(this worker's number, how many there are)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _on_all(work: Callable[[], MadeT], device: str) -> MadeT:
    """What `work` makes here. An error of ours on one worker is raised on all of them: none is left waiting for it."""
    made, error = [], None
    try:
        made = [work()]
    except SailyardError as raised:
        error = raised
    if dist.is_initialized() and _summed(torch.tensor(int(error is not None), device=device)):
        everywhere: list[SailyardError | None] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, error)
        error = next(filter(None, everywhere))
    if error:
        raise error
    return made[0]


def _summed(values: Tensor) -> Tensor:
    """The sum of all workers' values."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def _wait() -> None:
    """Until all workers are here."""
    if dist.is_initialized():
        dist.barrier()


def _demand_ends(setup: TrainSetup, folder: Folder) -> None:
    """What is read of a finished run must be there: the first worker looks for the untrained student and the trained one."""
    ends = (0, setup.train.steps) if _worker()[0] == 0 else ()
    lacking = [str(step) for step in ends if checkpoint.at(folder, step, setup.identity) is None]
    if lacking:
        what = f"no whole checkpoint of step {' and '.join(lacking)} at the end of training"
        raise BrokenArtifact(what, folder.url, "Run again: what is missing is made anew.")


def _write_metrics(folder: Folder, history: Sequence[Row]) -> None:
    folder.write(METRICS, "".join(json.dumps(row) + "\n" for row in history).encode())


def _speed(setup: TrainSetup, done: int, seconds: float) -> Row:
    return {"steps": setup.train.steps, "seconds": seconds, "samples_per_second": done * setup.train.batch / seconds}


def _summary(setup: TrainSetup, run: Run) -> Row:
    """What the run came to: each number averaged over the first and the last steps, and the samples left out."""
    names = [*_loss_names(run.distillation.teachers), "total"]
    mean = lambda rows, name: sum(row[name] for row in rows) / len(rows)  # noqa: E731
    return {
        "samples": setup.train.steps * setup.train.batch,
        "corpus": len(setup.corpus),
        "dropped": dict(setup.corpus.dropped),
        "parameters": sum(parameter.numel() for parameter in run.student.parameters()),
        "first": {name: mean(run.history[:AVERAGED], name) for name in names},
        "last": {name: mean(run.history[-AVERAGED:], name) for name in names},
    }
