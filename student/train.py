"""The training loop. It runs alone, or once on each worker of a `torch.distributed` group that somebody else has made.

A step moves the weights by a global batch, cut into micro-batches that the workers share out. Each loss is weighted by the
micro-batch's share of what it is a mean of (tokens, masks, pictures), so the sum is the loss of the whole batch however it
is cut. Everything random in a step is drawn from (seed, step, micro-batch): a run that was killed and resumed ends with the
weights and the history of one that was not, bit for bit on CPUs with the same number of threads.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.config import fingerprint
from schemas.errors import BrokenArtifact, ConfigError, DataError, NonFinite, Preempted
from schemas.storage import Folder
from student import base, blocks, checkpoint, optim, parallel
from student.census import census
from student.checkpoint import Row
from student.config import BaseConfig, LossConfig, OptimConfig, StudentConfig
from student.data import Corpus, ahead
from student.flops import training_flops
from student.losses import EPSILON, Distillation, losses
from student.model import PixelSail
from student.preemption import listening
from student.saving import Copies, Saver
from student.sequence import IGNORED, Batch, collate
from student.spikes import is_spike
from student.tracking import Pace, trackers
from student.train_config import TrainConfig
from student.vocabulary import Vocabulary

METRICS, NONFINITE = "metrics.jsonl", "nonfinite.json"
AVERAGED = 20  # steps at either end that the summary takes a mean of

Piece = tuple[int, Batch]  # a micro-batch and its place among those of its step
Report = Callable[[Row], None]
Look = Callable[[int, PixelSail], bytes]


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


def train(
    setup: TrainSetup, folder: Folder, report: Report, asked: Callable[[], bool] = lambda: False, look: Look | None = None
) -> Row:
    """Train in `folder` from its latest whole checkpoint to the last step; returns the summary.

    folder: gets `step-…/` and `metrics.jsonl`, a line a step. report: told the newest step's numbers and the pace. asked:
    whether somebody wants this worker to leave, beside the signals of `preemption.py`. look: draws what the student says at a
    step, which is reported as `look`, with its step; not of one whose weights are sliced.
    Raises NonFinite, naming the samples, before a step would move the weights by what is not a number; Preempted, with
    everything saved, after the step in which some worker was asked to leave; BrokenArtifact where, at the end, the untrained
    or the trained student is not whole in `folder`.
    """
    with _arithmetic(setup), listening() as told, Saver() as saver:
        shown = parallel.on_all(partial(_census, setup), setup.device)
        run, pace = Run.begin(setup, folder, saver), Pace(setup.device)
        with _shown(setup, len(run.history), report, pace) as show, _batches(setup, len(run.history)) as batches:
            for number, pieces, waited in batches:
                leaving = run.advance(folder, number, pieces, lambda: told() or asked())
                done = number + 1
                show(run.history[-1], pace.step(run.history[-1], setup.train.batch, waited, _flops(setup, pieces)))
                if look and _is_seen(setup, done):
                    with pace.paused():
                        seen = {"steps": setup.train.steps, "look": (done, look(done, run.student))}
                    report(run.history[-1] | pace.total() | seen)
                if leaving or done % setup.train.checkpoint_every == 0 or done == setup.train.steps:
                    run.save(folder, saver)
                if leaving and done < setup.train.steps:
                    parallel.on_all(saver.settle, setup.device)
                    raise Preempted(f"asked to leave after step {done}, which is saved", folder.url, "Run again to go on.")
        parallel.on_all(partial(_finish, setup, folder, run.history, saver), setup.device)
    return _summary(setup, run) | {"shown": shown, "steps": setup.train.steps} | pace.total()


def _is_seen(setup: TrainSetup, done: int) -> bool:
    """Whether this worker looks at the student after step `done`."""
    config = setup.train
    return parallel.worker()[0] == 0 and config.parallel == "ddp" and (done % config.look_every == 0 or done == config.steps)


def _flops(setup: TrainSetup, pieces: Sequence[Piece]) -> int:
    """The matrix arithmetic that this worker's pieces ask for."""
    every = any(teacher.reads == "mask_features" for teacher in setup.loss.distillation.values())
    return sum(training_flops(setup.student, batch, len(setup.vocabulary), every) for _, batch in pieces)


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

    @classmethod
    def begin(cls, setup: TrainSetup, folder: Folder, saver: Saver) -> "Run":
        """From the latest checkpoint, or else from the initial weights; these become checkpoint 0 wherever it is not whole."""
        found = checkpoint.latest(folder, setup.identity)
        parallel.wait()
        student = initial_student(setup.student, setup.vocabulary, setup.train.seed)
        if setup.base:
            base.load(student, setup.vocabulary, setup.base, setup.train.seed)
        student = student.to(setup.device)
        distillation = _distillation(setup).to(setup.device)
        if parallel.worker()[0] == 0:
            saver.save(parallel.whole(_weights(student, distillation)), partial(_publish, setup, folder, []))
        if found:
            student.load_state_dict(found.model())
            checkpoint.load_module(distillation, "distillation/", found.training())
        _lay_out(setup, student, distillation)
        optimizer = optim.optimizer([*student.parameters(), *distillation.parameters()], setup.optim)
        run = cls(setup, student, distillation, optimizer, list(found.history) if found else [])
        if found:
            checkpoint.load_optimizer(optimizer, run.names, found.training())
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
        shares = [(size / whole)[:-2] for size in sizes]
        found = parallel.on_all(
            lambda: torch.stack(list(map(partial(self._backward, number), pieces, shares))), self.setup.device
        )
        parallel.sum_gradients(parameter for group in self.optimizer.param_groups for parameter in group["params"])
        rate = optim.learning_rate(number, config.steps, self.setup.optim)
        norm = optim.step(self.optimizer, rate, self.setup.optim.clip, _sample_ids(pieces))
        values = parallel.summed(found.sum(dim=0)).tolist()
        parts = dict(zip(_loss_names(teachers), values, strict=True))
        counts = {"samples": (number + 1) * config.batch, "tokens": int(whole[-1]), "dropped_turns": int(whole[-2])}
        return {"step": number + 1, "lr": rate, **parts, "total": sum(values), "grad_norm": norm, **counts}

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
        shared = torch.stack([parts[name] for name in _loss_names(self.distillation.teachers)]) * share.to(setup.device)
        (shared.sum() + output.anchor.float()).backward()
        return shared.detach()


def _lay_out(setup: TrainSetup, student: PixelSail, distillation: Distillation) -> None:
    """Have the blocks carried out, and the weights held, as the config says."""
    layers = list(student.single_transformer.model.layers)
    if setup.train.recompute:
        blocks.recompute(layers)
    if setup.train.compile:
        blocks.compile_blocks(layers)
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
        _write_metrics(folder, history)
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
    return [sample_id for _, batch in pieces for sample_id in batch.sample_ids]


def _loss_names(teachers: Iterable[str]) -> list[str]:
    return ["lm", "mask", "dice", *(f"distill/{teacher}" for teacher in teachers)]


def _sizes(batch: Batch, teachers: Sequence[str]) -> Tensor:
    """How many things each loss is a mean of: tokens, masks twice, each teacher's pictures, as `losses` counts them; last
    the turns that were too long to be learned from, and all tokens."""
    tokens = int((batch.next_labels_R != IGNORED).sum())
    masks = sum(len(masks) for masks in batch.masks) + EPSILON
    shown = [sum(teacher in features for features in batch.features) + EPSILON for teacher in teachers]
    return torch.tensor([tokens, masks, masks, *shown, batch.dropped, len(batch.tokens_R)])


def _census(setup: TrainSetup) -> Row:
    corpus, config = setup.corpus, setup.train
    if len(corpus) == 0:
        raise DataError(f"no samples to train on ({dict(corpus.dropped)} left out)", "the training corpus")
    return census(corpus, corpus.order(config.seed, config.mixture))


@contextmanager
def _batches(setup: TrainSetup, first: int) -> Iterator[Iterator[tuple[int, list[Piece], float]]]:
    """Of each step from `first` on: its number, this worker's pieces of its batch, and the seconds waited for them."""
    steps = range(first, setup.train.steps)

    def each() -> Iterator[tuple[int, list[Piece], float]]:
        for number in steps:
            began = time.perf_counter()
            pieces = parallel.on_all(partial(next, coming), setup.device)
            yield number, pieces, time.perf_counter() - began

    with closing(ahead(_pieces(setup), steps, depth=setup.train.ahead, threads=setup.train.readers)) as coming:
        yield each()


def _pieces(setup: TrainSetup) -> Callable[[int], list[Piece]]:
    """The function from a step to this worker's pieces of its batch."""
    config, corpus, (rank, workers) = setup.train, setup.corpus, parallel.worker()
    order, places = corpus.order(config.seed, config.mixture), _places(config, rank, workers)

    def pieces(number: int) -> list[Piece]:
        starts = [number * config.batch + place * config.micro_batch for place in places]
        chosen = [order.between(start, start + config.micro_batch) for start in starts]
        batches = [collate(corpus.examples(samples)) for samples in chosen]
        return list(zip(places, batches, strict=True))

    return pieces


def _places(config: TrainConfig, rank: int, workers: int) -> range:
    """Which micro-batches of a step are this worker's. A group that may shrink shares them as evenly as they go."""
    count = config.micro_batches
    if count % workers and (config.min_workers is None or config.parallel == "fsdp" or count < workers):
        what = f"{count} micro-batches a step cannot be shared by {workers} workers"
        raise ConfigError(what, "train.micro_batch", "Make batch / micro_batch a multiple of the number of workers.")
    return range(rank * count // workers, (rank + 1) * count // workers)


@contextmanager
def _shown(setup: TrainSetup, first: int, report: Report, pace: Pace) -> Iterator[Callable[[Row, Row], None]]:
    """A function that shows a step's row and what it took: now and then, and the last."""
    config, name = setup.train, fingerprint(setup.identity)
    if parallel.worker()[0]:
        yield lambda row, took: None
        return
    with trackers(config.tracking, name, first) as others:

        def show(row: Row, took: Row) -> None:
            if row["step"] % config.log_every and row["step"] != config.steps:
                return
            numbers = {name: value for name, value in (row | took).items() if isinstance(value, int | float)}
            for tracker in others:
                tracker.log(row["step"], numbers)
            report(row | {"steps": config.steps} | pace.total())

        yield show


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


def _finish(setup: TrainSetup, folder: Folder, history: Sequence[Row], saver: Saver) -> None:
    """Wait for the last checkpoint, and leave in `folder` what is read of a finished run."""
    saver.settle()
    if parallel.worker()[0] == 0:
        _write_metrics(folder, history)
        folder.remove(NONFINITE)
        _demand_ends(setup, folder)


def _demand_ends(setup: TrainSetup, folder: Folder) -> None:
    """What is read of a finished run must be there: the untrained student and the trained one."""
    lacking = [str(step) for step in (0, setup.train.steps) if checkpoint.at(folder, step, setup.identity) is None]
    if lacking:
        what = f"no whole checkpoint of step {' and '.join(lacking)} at the end of training"
        raise BrokenArtifact(what, folder.url, "Run again: what is missing is made anew.")


def _write_metrics(folder: Folder, history: Sequence[Row]) -> None:
    folder.write(METRICS, "".join(json.dumps(row) + "\n" for row in history).encode())


def _summary(setup: TrainSetup, run: Run) -> Row:
    """What the run came to: each number averaged over the first and the last steps."""
    names = [*_loss_names(run.distillation.teachers), "total"]
    mean = lambda rows, name: sum(row[name] for row in rows) / len(rows)  # noqa: E731
    return {
        "samples": setup.train.steps * setup.train.batch,
        "corpus": len(setup.corpus),
        "spikes": sum("spike" in row for row in run.history),
        "parameters": sum(parameter.numel() for parameter in run.student.parameters()),
        "first": {name: mean(run.history[:AVERAGED], name) for name in names},
        "last": {name: mean(run.history[-AVERAGED:], name) for name in names},
    }
