"""How long a student is trained, on what share of the samples at a time, and how often it is saved. No torch here."""

from typing import Literal, Self

from pydantic import Field, model_validator

from schemas.config import Config, execution
from schemas.marks import Pen
from student.data.mixture import Mixture


class TrackingConfig(Config):
    """Where the numbers of a run are shown beside `metrics.jsonl`: a folder for TensorBoard's event files, and an MLflow
    tracking server or folder. Each is an optional package."""

    tensorboard: str | None = execution(None)
    mlflow: str | None = execution(None)


class TrainConfig(Config):
    """`batch` samples move the weights once, on however many workers; they go through the student `micro_batch` at a time.

    A micro-batch is the piece that workers share out and the unit of random numbers, so the number of workers changes
    neither the samples nor the points at which masks are compared. Features whose certificate lies under
    `min_gradient_cosine` are refused. Samples whose picture or feature failed, and was let pass, are skipped and counted, or
    with `nonmatch = "error"` refused. Features that are not on a local disk are kept in the local folder `feature_cache`, at
    most `feature_cache_bytes` of them; without a folder they are fetched each time. `mixture` says how often the parts of
    the samples are shown, and `pen` how their prompts are drawn. Every `look_every` steps a few dialogues are asked and shown.
    """

    steps: int = Field(default=1000, ge=1)
    batch: int = Field(default=8, ge=1)
    micro_batch: int = Field(default=4, ge=1)
    seed: int = Field(default=0, ge=0)
    mixture: Mixture = Mixture()
    pen: Pen = Pen()
    precision: Literal["float32", "bfloat16"] = "float32"
    nonmatch: Literal["error", "skip"] = execution("skip")
    parallel: Literal["ddp", "fsdp"] = execution("ddp")
    recompute: bool = execution(False)
    compile: bool = execution(False)
    min_workers: int | None = execution(None, ge=1)
    checkpoint_every: int = execution(500, ge=1)
    keep: int = execution(2, ge=1)
    log_every: int = execution(10, ge=1)
    look_every: int = execution(500, ge=1)
    ahead: int = execution(2, ge=1)
    readers: int = execution(1, ge=1)
    cache_bytes: int = execution(256 << 20, ge=0)
    feature_cache: str | None = execution(None)
    feature_cache_bytes: int = execution(64 << 30, ge=0)
    min_gradient_cosine: float = execution(0.99, ge=-1, le=1)
    tracking: TrackingConfig = execution(TrackingConfig())

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        if self.batch % self.micro_batch:
            raise ValueError(f"batch = {self.batch} must be a multiple of micro_batch = {self.micro_batch}")
        return self

    @property
    def micro_batches(self) -> int:
        """How many a step is made of."""
        return self.batch // self.micro_batch
