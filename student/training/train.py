"""The training loop. It runs alone, or once on each worker of a `torch.distributed` group that somebody else has made.

Everything random in a step is drawn from (seed, step, micro-batch): a run that was killed and resumed ends with the
weights and the history of one that was not, bit for bit on CPUs with the same number of threads.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from functools import partial

import torch

from schemas.config import fingerprint
from schemas.errors import BrokenArtifact, ConfigError, Preempted
from schemas.storage import Folder
from student.data.ahead import ahead
from student.data.census import census, seen, told
from student.data.samples import encode_nothing
from student.model import PixelSail
from student.sequence import collate
from student.train_config import TrainConfig
from student.training import checkpoint, parallel
from student.training.checkpoint import Row
from student.training.flops import training_flops
from student.training.preemption import listening, pass_on
from student.training.run import NONFINITE, Piece, Run, TrainSetup, loss_names, write_metrics
from student.training.saving import Saver
from student.training.tracking import Pace, trackers

AVERAGED = 20  # steps at either end that the summary takes a mean of

Report = Callable[[Row], None]
Look = Callable[[int, PixelSail], bytes]


def train(
    setup: TrainSetup, folder: Folder, report: Report, asked: Callable[[], bool] = lambda: False, look: Look | None = None
) -> Row:
    """Train in `folder` from its latest whole checkpoint to the last step; returns the summary.

    folder: gets `step-…/` and `metrics.jsonl`, a line a step. report: told at the start what will be `shown`, then the newest
    step's numbers and the pace. asked: whether somebody wants this worker to leave, beside the signals of `preemption.py`.
    look: draws what the student says at a step, reported as `look`, with its step; not of one whose weights are sliced.
    Raises NonFinite, naming the samples, before a step would move the weights by what is not a number; Preempted, with
    everything saved, after the step in which some worker was asked to leave; BrokenArtifact where, at the end, the untrained
    or the trained student is not whole in `folder`.
    """
    config = setup.train
    with _arithmetic(setup), listening() as heard, Saver() as saver:
        shown = parallel.on_all(lambda: census(setup.corpus, setup.order(), config.steps * config.batch), setup.device)
        run, pace = Run.begin(setup, folder, saver), Pace(setup.device)
        if parallel.worker()[0] == 0 and len(run.history) < config.steps:
            report({"step": len(run.history), "steps": config.steps, "shown": told(shown)} | pace.total())
        with _shown(setup, len(run.history), report, pace) as show, _batches(setup, len(run.history)) as batches:
            for number, pieces, waited in batches:
                leaving = run.advance(folder, number, pieces, lambda: heard() or asked())
                done, row = number + 1, run.history[-1]
                show(row, pace.step(row, config.batch - row["skipped"], waited, _flops(setup, pieces)))
                if look and _is_seen(setup, done):
                    with pace.paused():
                        drawn = {"steps": config.steps, "look": (done, look(done, run.student))}
                    report(row | pace.total() | drawn)
                if leaving or done % config.checkpoint_every == 0 or done == config.steps:
                    run.save(folder, saver)
                if leaving and done < config.steps:
                    parallel.on_all(saver.settle, setup.device)
                    raise Preempted(f"asked to leave after step {done}, which is saved", folder.url, "Run again to go on.")
        parallel.on_all(partial(_finish, setup, folder, run.history, saver), setup.device)
    if heard():  # too late to leave early; but whoever sent it meant the process
        pass_on()
    return _summary(setup, run) | {"shown": shown, "steps": config.steps} | pace.total()


def _is_seen(setup: TrainSetup, done: int) -> bool:
    """Whether this worker looks at the student after step `done`."""
    config = setup.train
    return parallel.worker()[0] == 0 and config.parallel == "ddp" and (done % config.look_every == 0 or done == config.steps)


def _flops(setup: TrainSetup, pieces: Sequence[Piece]) -> int:
    """The matrix arithmetic that this worker's pieces ask for."""
    every = any(teacher.reads == "mask_features" for teacher in setup.loss.distillation.values())
    return sum(training_flops(setup.student, batch, len(setup.vocabulary), every) for _, batch in pieces)


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
    order, places = setup.order(), _places(config, rank, workers)
    nothing = encode_nothing(setup.vocabulary, setup.student)

    def pieces(number: int) -> list[Piece]:
        starts = [number * config.batch + place * config.micro_batch for place in places]
        chosen = [order.between(start, start + config.micro_batch) for start in starts]
        batches = [collate(corpus.examples(visits) or [nothing]) for visits in chosen]
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
    config, name, order = setup.train, fingerprint(setup.identity), setup.order()
    mine = parallel.worker()[0] == 0
    with ExitStack() as held:
        opened = lambda: held.enter_context(trackers(config.tracking, name, first)) if mine else []  # noqa: E731
        others = parallel.on_all(opened, setup.device)  # where that fails, nobody waits in the first step

        def show(row: Row, took: Row) -> None:
            if row["step"] % config.log_every and row["step"] != config.steps:
                return
            numbers = {name: value for name, value in (row | took).items() if isinstance(value, int | float)}
            for tracker in others:
                tracker.log(row["step"], numbers)
            parts = {f"seen/{part}": count for part, count in seen(setup.corpus, order, row["samples"]).items()}
            report(row | parts | {"steps": config.steps} | pace.total())

        yield show if mine else lambda row, took: None


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
        write_metrics(folder, history)
        folder.remove(NONFINITE)
        _demand_ends(setup, folder)


def _demand_ends(setup: TrainSetup, folder: Folder) -> None:
    """What is read of a finished run must be there: the untrained student and the trained one."""
    lacking = [str(step) for step in (0, setup.train.steps) if checkpoint.at(folder, step, setup.identity) is None]
    if lacking:
        what = f"no whole checkpoint of step {' and '.join(lacking)} at the end of training"
        raise BrokenArtifact(what, folder.url, "Run again: what is missing is made anew.")


def _summary(setup: TrainSetup, run: Run) -> Row:
    """What the run came to: each number averaged over the first and the last steps."""
    names = [*loss_names(run.distillation.teachers), "total"]
    mean = lambda rows, name: sum(row[name] for row in rows) / len(rows)  # noqa: E731
    return ({"base": asdict(run.started)} if run.started else {}) | {
        "samples": setup.train.steps * setup.train.batch,
        "corpus": len(setup.corpus),
        "spikes": sum("spike" in row for row in run.history),
        "skipped": sum(row["skipped"] for row in run.history),
        "parameters": sum(parameter.numel() for parameter in run.student.parameters()),
        "first": {name: mean(run.history[:AVERAGED], name) for name in names},
        "last": {name: mean(run.history[-AVERAGED:], name) for name in names},
    }
