"""What a stage is. A stage makes one artifact from others and is nothing but its frozen config until it is opened.

`MapStage` makes shard k of its output from shard k of its inputs and can run on any worker. `JobStage` makes its artifact
as a whole: a Beam pipeline, a training run, a report. Both depend on their config and inputs alone; `Resources` say where
and how fast, and never change a byte.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import pyarrow as pa
from pydantic import Field

from schemas.artifact import Artifact, Part
from schemas.config import Config
from schemas.errors import StageFailed
from schemas.row_errors import ErrorClass, RowError
from schemas.tables import Table
from stages.waivers import read_waivers
from stages.weights import random_weights_note, weights_digest
from teachers.base import NetworkConfig

Tables = Mapping[str, pa.Table]
Inputs = Mapping[str, Artifact]
ShardFunction = Callable[[Tables], pa.Table]

MOST_LINES = 1000


class Resources(Config):
    """Where and how a stage is carried out. A worker that is silent for `deadline_s`, in which no batch or row group ends, is
    given up, and its shard goes to another. Where that is not said, a worker on Ray is, after half an hour, or twenty times the
    longest silence of late if that is more; before there was any to go by, after a day."""

    executor: Literal["local", "ray"] = "ray"
    workers: int = Field(default=1, ge=1)
    threads: int = Field(default=1, ge=1)
    device: str = "cpu"
    gpus: float = Field(default=0.0, ge=0)
    batch: int = Field(default=16, ge=1)
    attempts: int = Field(default=3, ge=1)
    deadline_s: float | None = Field(default=None, gt=0)
    ray_address: str | None = None
    beam_options: tuple[str, ...] = ()
    max_error_rate: float = Field(default=0.0, ge=0, le=1)


class Progress(Protocol):
    """Told, now and then, how far a stage is; `note` is a short remark such as the current loss."""

    def __call__(self, done: int, total: int, unit: str, note: str = "") -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a stage has to say when it is done: a summary for the record, and a line for each failure."""

    summary: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Stage(Config, ABC):
    """`version` is raised when the code changes what the stage makes."""

    version: ClassVar[int] = 1

    @abstractmethod
    def table(self) -> Table | None:
        """The table it makes; None for plain files."""

    def opens(self) -> NetworkConfig | None:
        """The frozen network that it opens, if any."""
        return None

    def outside(self) -> dict[str, str]:
        """Digests of what it reads that is no artifact (source files, weights): they are part of the identity."""
        network = self.opens()
        return weights_digest(network) if network else {}

    def notes(self) -> list[str]:
        """What whoever reads a plan, a record or a report must know, such as that a teacher's weights are random."""
        network = self.opens()
        return random_weights_note(network) if network else []


class MapStage(Stage):
    """Shard k of the inputs -> shard k of the output, the same rows in the same order."""

    @abstractmethod
    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        """Runs once on a worker: loads what is heavy, returns the function from a shard's input tables to its rows.
        `whole` holds the artifacts it needs as a whole (a checkpoint, a vocabulary), which are not cut into shards."""


class JobStage(Stage):
    """Whole artifacts -> one artifact. What is already in `output` and counts is not made again."""

    @abstractmethod
    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome: ...


@dataclass(frozen=True)
class ShardResult:
    """What a worker tells the driver of a shard; its rows stay in the store."""

    number: int
    rows: int
    failed: int
    bytes: int
    seconds: float


Make = Callable[[int], ShardResult]


class ShardWork(Protocol):
    """Work that can be done shard by shard. A worker opens it, and then makes any shard of `output` by its number."""

    @property
    def output(self) -> Artifact: ...

    @property
    def resources(self) -> Resources: ...

    def open(self) -> Make: ...


def row_error(kind: ErrorClass, error: BaseException | str) -> str:
    """The line that a failed row carries."""
    return str(RowError.of(kind, error))


def make_shard(function: ShardFunction, inputs: Inputs, output: Artifact, number: int) -> ShardResult:
    """Read shard `number` of every input, make it, publish it."""
    start = time.perf_counter()
    rows = function({name: artifact.read(number) for name, artifact in inputs.items()})
    part = output.write(number, rows)
    return ShardResult(number, part.rows, part.failed, part.bytes, time.perf_counter() - start)


def failed_rows(output: Artifact, parts: Mapping[int, Part]) -> Iterator[tuple[int, int, str, str]]:
    """(shard, row, key, error) of every failed row of these shards, as `output.found()` has them."""
    for number, part in parts.items():
        if part.failed:
            rows = output.read(number, ["image_key", "error"]).to_pylist()
            yield from ((number, row, each["image_key"], each["error"]) for row, each in enumerate(rows) if each["error"])


def judge(output: Artifact, max_error_rate: float) -> list[str]:
    """A line for each failed row of an output whose shards all lie there, `MOST_LINES` of them; `StageFailed` when more rows
    failed than were waived and may fail."""
    parts = output.found()
    rows = sum(part.rows for part in parts.values())
    waivers, lines, counted, example = read_waivers(output), list[str](), 0, ""
    for number, _, key, error in failed_rows(output, parts):
        why = waivers.why(key, error)
        line = f"shard {number}: {key}: {error}" + (f" (waived: {why})" if why is not None else "")
        if why is None:
            counted, example = counted + 1, example or line
        if len(lines) < MOST_LINES:
            lines.append(line)
    if counted > max_error_rate * rows:
        mend = "Mend the files and run with --rebuild images, which makes what follows from them anew"
        if output.table and output.table.name not in ("images", "annotations"):
            mend = "Mend the cause and `sailyard retry` (of a picture that cannot be decoded, the file, and --rebuild images)"
        raise StageFailed(
            f"{counted} of {rows} rows failed, more than max_error_rate = {max_error_rate} allows ({example})",
            output.where,
            f"{mend}, `sailyard waive` them, or raise resources.max_error_rate; what is done stays done.",
        )
    return lines
