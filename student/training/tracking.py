"""What a step has cost, measured; and where its numbers are shown beside `metrics.jsonl`, which alone is the truth.

Measured numbers differ from run to run, so they stay out of the history, of checkpoints and of the artifact.
"""

import logging
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch

from schemas.errors import DataError, MissingLibrary, Preempted
from student.train_config import TrackingConfig
from student.training.flops import peak

RUN_TAG = "sailyard.run"
_log = logging.getLogger(__name__)


class Pace:
    """Counts what the steps since the start of this run took; `clock` gives seconds."""

    def __init__(self, device: str, clock: Callable[[], float] = time.perf_counter):
        self.device, self.clock = device, clock
        self.began = self.ended = clock()
        self.peak = peak(device)
        self.samples = self.tokens = self.flops = 0
        self.waited = 0.0

    def step(self, row: Mapping[str, Any], samples: int, waited: float, flops: int) -> dict[str, float]:
        """Count a step of `row["tokens"]` tokens that waited so many seconds for its data, and asked this worker for so many
        operations; the numbers of this step alone."""
        before, self.ended = self.ended, self.clock()
        self.samples, self.tokens, self.waited = self.samples + samples, self.tokens + row["tokens"], self.waited + waited
        self.flops += flops
        return self._pace(self.ended - before, samples, row["tokens"], waited, flops)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done meanwhile is no part of any step."""
        stopped = self.clock()
        yield
        away = self.clock() - stopped
        self.began, self.ended = self.began + away, self.ended + away

    def total(self) -> dict[str, float]:
        """The same of all steps so far, and the seconds since the start."""
        seconds = self.clock() - self.began
        return {"seconds": seconds} | self._pace(seconds, self.samples, self.tokens, self.waited, self.flops)

    def _pace(self, seconds: float, samples: int, tokens: int, waited: float, flops: int) -> dict[str, float]:
        """`mfu` is of the operations that the device could do, where that is known."""
        seconds = max(seconds, 1e-9)
        pace = {"samples_per_second": samples / seconds, "tokens_per_second": tokens / seconds, "data_wait": waited / seconds}
        used = {"mfu": flops / seconds / self.peak} if self.peak else {}
        return pace | {"tflop_per_second": flops / seconds / 1e12} | used | {"peak_bytes": peak_bytes(self.device)}


def peak_bytes(device: str) -> int:
    """The most memory held so far: of the GPU, or of this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Tracker(Protocol):
    """Shows numbers by their step."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self, error: BaseException | None) -> None:
        """error: what ended the run before its end."""
        ...


def _closed(tracker: Tracker, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
    tracker.close(error)


@contextmanager
def trackers(config: TrackingConfig, run: str, after: int) -> Iterator[Sequence[Tracker]]:
    """Those that the config names, for the run of that fingerprint which goes on `after` a step; closed when the block ends."""
    with ExitStack() as open_ones:
        made: list[Tracker] = []
        for place, tracker in ((config.tensorboard, TensorBoard), (config.mlflow, MLflow)):
            if place:
                made.append(tracker(place, run, after))
                open_ones.push(partial(_closed, made[-1]))
        yield made


class TensorBoard:
    """Event files in a folder; what an earlier run wrote there beyond the step that this one goes on after is hidden."""

    def __init__(self, folder: str, run: str, after: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingLibrary(str(error), "train.tracking.tensorboard", "pip install 'sailyard[tensorboard]'") from None
        self.writer = SummaryWriter(f"{folder.rstrip('/')}/{run[:8]}", purge_step=after + 1)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self, error: BaseException | None) -> None:
        self.writer.close()


class MLflow:
    """A run of the experiment "sailyard" on a tracking server or in a folder; one that was resumed goes on under its run."""

    def __init__(self, place: str, run: str, after: int):
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise MissingLibrary(str(error), "train.tracking.mlflow", "pip install 'sailyard[mlflow]'") from None
        self.client, self.metric, self.failure = MlflowClient(place), Metric, MlflowException
        try:
            self.id = self._opened(run)
        except self.failure as error:
            what = f"MLflow cannot be opened: {' '.join(str(error).split())}"
            raise DataError(what, f"train.tracking.mlflow = {place}", "Start its server, or leave it out.") from None

    def _opened(self, run: str) -> str:
        """The id of the run, which is running."""
        experiment = self.client.get_experiment_by_name("sailyard")
        number = experiment.experiment_id if experiment else self.client.create_experiment("sailyard")
        found = self.client.search_runs([number], f"tags.`{RUN_TAG}` = '{run}'", max_results=1)
        made = found[0] if found else self.client.create_run(number, tags={RUN_TAG: run}, run_name=run[:8])
        self.client.update_run(made.info.run_id, status="RUNNING")
        return made.info.run_id

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self.metric(name, value, now, step) for name, value in numbers.items()]
        self._told(lambda: self.client.log_batch(self.id, metrics))

    def close(self, error: BaseException | None) -> None:
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, Preempted) else "FAILED"
        self._told(lambda: self.client.set_terminated(self.id, status))

    def _told(self, tell: Callable[[], None]) -> None:
        """A server that does not answer costs the numbers on its page, not the run."""
        try:
            tell()
        except self.failure as error:
            _log.warning("MLflow was not told: %s", error)
