"""SAMPLES, IMAGES and features -> checkpoints: the student's own training loop, in this process or on Ray Train workers.

Ray Train brings the workers up, connects them, and starts them anew when one is lost; the checkpoints are the student's,
in the store, and a fresh group goes on from the latest whole one. What the loop reports reaches the driver through an actor,
and so does a notice to leave reach the workers: signals come to the driver, and what leaves on a signal has saved its step.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from schemas.artifact import Artifact
from schemas.cache import Cache
from schemas.errors import Preempted, SailyardError, StageFailed
from schemas.tables import Table
from stages.base import Inputs, JobStage, Outcome, Progress, Resources, row_error
from stages.basis import read_basis
from stages.certificate import demand
from stages.executor import in_background, start_ray
from stages.looks import Look
from stages.vocabulary import FILE, base_digest
from student.config import BaseConfig, LossConfig, OptimConfig, StudentConfig
from student.train_config import TrainConfig
from student.training.preemption import listening, pass_on

POLL_SECONDS = 1.0
LEAVE_SECONDS = 20.0  # how long a group that is asked to leave may take to save; schedulers kill after 30


@runtime_checkable
class Charted(Protocol):
    """A `Progress` that also draws curves, hangs up pictures, and lays out tables."""

    def chart(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def hang(self, png: bytes, title: str) -> None: ...

    def lay(self, rows: Sequence[Mapping[str, Any]], line: str) -> None: ...


class TrainStage(JobStage):
    """Inputs: `samples`, `images`, `vocabulary` and, for each teacher of `loss.distillation`, a `features/<teacher>`, and a
    `basis/<teacher>` where principal components are stored; and each `certificate/<teacher>` that must be good enough."""

    student: StudentConfig
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    base: BaseConfig | None = None

    def outside(self) -> dict[str, str]:
        return {"base": base_digest(self.base)} if self.base else {}

    def table(self) -> Table | None:
        return None

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        for name in self.loss.distillation:
            if f"certificate/{name}" in inputs:
                demand(inputs[f"certificate/{name}"], inputs[f"features/{name}"], self.train.min_gradient_cosine)
        work = TrainWork(self, inputs, output, resources)
        train = _train_here if resources.executor == "local" else _train_on_ray
        return Outcome(train(work, progress))

    def setup(self, vocabulary: Any, corpus: Any, identity: Mapping[str, Any], resources: Resources) -> Any:
        """The `TrainSetup` of one worker."""
        from student.training.run import TrainSetup

        return TrainSetup(
            student=self.student,
            loss=self.loss,
            optim=self.optim,
            train=self.train,
            vocabulary=vocabulary,
            corpus=corpus,
            identity=identity,
            base=self.base,
            device=resources.device,
            threads=resources.threads,
        )


@dataclass(frozen=True)
class TrainWork:
    """All that a worker must know to train."""

    stage: TrainStage
    inputs: Inputs
    output: Artifact
    resources: Resources

    def run(self, report: Any, asked: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        from student.data.corpus import Corpus
        from student.training.train import train
        from student.vocabulary import Vocabulary

        stage, inputs = self.stage, self.inputs
        vocabulary = Vocabulary.from_json(inputs["vocabulary"].folder.read(FILE).decode())
        corpus = Corpus(
            samples=inputs["samples"],
            images=inputs["images"],
            features={name: inputs[f"features/{name}"] for name in stage.loss.distillation},
            bases={name: read_basis(inputs[role]) for name in stage.loss.distillation if (role := f"basis/{name}") in inputs},
            vocabulary=vocabulary,
            config=stage.student,
            split="train",
            cache_bytes=stage.train.cache_bytes,
            feature_cache=_cache(stage.train),
            nonmatch=stage.train.nonmatch,
            pen=stage.train.pen,
        )
        setup = stage.setup(vocabulary, corpus, self.output.identity, self.resources)
        return train(setup, self.output.folder, report, asked, Look(corpus))


def _cache(config: TrainConfig) -> Cache | None:
    """Where rows of remote features are kept."""
    return Cache(Path(config.feature_cache), config.feature_cache_bytes) if config.feature_cache else None


def _train_here(work: TrainWork, progress: Progress) -> dict[str, Any]:
    try:
        return work.run(lambda row: _tell(progress, row))
    except Preempted:
        pass_on()
        raise


def _tell(progress: Progress, row: dict[str, Any]) -> None:
    if isinstance(progress, Charted) and "shown" in row:
        progress.lay(*row["shown"])
    if "total" not in row:  # before the first step
        return
    if isinstance(progress, Charted):
        progress.chart(row["step"], {name: value for name, value in row.items() if isinstance(value, int | float)})
        if "look" in row:
            step, png = row["look"]
            progress.hang(png, f"What the student says of training pictures after {step} of {row['steps']} steps")
    losses = [f"{name} {row[name]:.3f}" for name in ("lm", "mask", "dice") if name in row]
    pace = f"{row['tokens_per_second']:.0f} tokens/s, {row['data_wait']:.0%} of it waiting for data"
    progress(row["step"], row["steps"], "steps", " ".join([*losses, "·", pace]))


class _Board:
    """An actor on which the workers leave their latest row, and at the end the summary, or the error that is ours; and on
    which they read whether they shall leave."""

    leaving = False
    row: dict[str, Any] | None = None
    result: dict[str, Any] | SailyardError | None = None

    def post(self, row: dict[str, Any]) -> None:
        """What is not numbers stays until it has been read: rows come more often than anybody reads them."""
        kept = {name: self.row[name] for name in ("shown", "look") if name in self.row} if self.row else {}
        self.row = kept | row

    def finish(self, result: dict[str, Any] | SailyardError) -> None:
        self.result = self.result or result

    def read(self) -> tuple[dict[str, Any] | None, dict[str, Any] | SailyardError | None]:
        row, self.row = self.row, None
        return row, self.result

    def ask_to_leave(self) -> None:
        self.leaving = True

    def is_leaving(self) -> bool:
        return self.leaving


class _Asked:
    """Whether the board says to leave, as far as is known: a question is always on its way, and nobody waits for the answer."""

    def __init__(self, board: Any):
        self.board, self.answer = board, board.is_leaving.remote()

    def __call__(self) -> bool:
        import ray

        if not ray.wait([self.answer], timeout=0)[0]:
            return False
        leaving, self.answer = ray.get(self.answer), self.board.is_leaving.remote()
        return bool(leaving)


def _train_on_ray(work: TrainWork, progress: Progress) -> dict[str, Any]:
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources, fewest = work.resources, work.stage.train.min_workers
    start_ray(resources)
    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    with tempfile.TemporaryDirectory(prefix="sailyard-ray-train-") as scratch:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"work": work, "board": board},
            scaling_config=ScalingConfig(
                num_workers=(min(fewest, resources.workers), resources.workers) if fewest else resources.workers,
                use_gpu=resources.gpus > 0,
                resources_per_worker={"CPU": resources.threads, "GPU": resources.gpus},
            ),
            run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=resources.attempts - 1)),
        )
        return _fit(trainer, board, progress)


def _worker(config: dict[str, Any]) -> None:
    """Runs on each worker of the group. What fails by an error of ours would fail again: a new group gives up at once."""
    import ray
    import ray.train

    board = config["board"]
    _, given_up = ray.get(board.read.remote())
    if given_up is not None:
        raise given_up
    try:
        result = config["work"].run(lambda row: board.post.remote(row), _Asked(board))
    except SailyardError as error:
        ray.get(board.finish.remote(error))
        raise
    if ray.train.get_context().get_world_rank() == 0:
        ray.get(board.finish.remote(result))


def _fit(trainer: Any, board: Any, progress: Progress) -> dict[str, Any]:
    """Train in another thread and tell of it from this one; returns the summary."""
    import ray
    from ray.train import TrainingFailedError

    fit = in_background(trainer.fit)
    try:
        with listening() as told:
            left = _follow(fit, board, progress, told)
        if left or told():
            pass_on()
        if left:
            raise left
    finally:
        if not fit.done():
            ray.shutdown()  # interrupted: the group must not train on
    row, result = ray.get(board.read.remote())
    ray.kill(board)
    if row:
        _tell(progress, row)
    if isinstance(result, SailyardError):
        raise result
    try:
        fit.result()
    except TrainingFailedError as error:
        raise StageFailed(row_error("infra", error), remedy="Run again to go on from the last checkpoint.") from error
    assert result is not None, "a group that ended well left no summary"
    return result


def _follow(fit: Future[Any], board: Any, progress: Progress, told: Callable[[], bool]) -> Preempted | None:
    """Tell of the training until it has ended, or has left because it was asked to, or has not done so in time."""
    import ray

    last = float("inf")
    while not wait([fit], timeout=POLL_SECONDS).done:
        if told() and last == float("inf"):
            board.ask_to_leave.remote()
            last = time.monotonic() + LEAVE_SECONDS
        row, result = ray.get(board.read.remote())
        if isinstance(result, Preempted):
            return result
        if time.monotonic() > last:
            return Preempted("asked to leave, and the group has not in time", remedy="Run again to go on.")
        if row:
            _tell(progress, row)
    return None
