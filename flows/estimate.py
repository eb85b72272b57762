"""From what was measured to what the project will take: rows, bytes, hours and memory of each step, whether it pays to store
what a teacher says, and what it costs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from flows.config import Project
from flows.graph import Step
from flows.probe import Measured, hands
from flows.states import State, state_of
from schemas.artifact import Artifact
from schemas.codecs import layout_bytes
from stages.annotations import AnnotationsStage
from stages.base import Stage
from stages.basis import BasisStage
from stages.certificate import CertificateStage
from stages.features import FeaturesStage
from stages.forecast import Prices, Range, StepForecast, total, total_if_known
from stages.pool import PoolStage
from stages.predict import PredictStage
from stages.probe import StagePace
from stages.probe_train import LEARN, LOAD, RECKONED, SAMPLE, history_bytes
from stages.prompts import PromptsStage
from stages.samples import SamplesStage
from stages.segments import SegmentsStage
from stages.source import SourceStage
from stages.train import TrainStage

# How often the rows of a shard lie in a worker's memory at most, while they become a file: as they are made, in one piece, as
# the file that grows, and as the file that is signed. Measured: 4.0.
COPIES = Range(1.0, 4.0, 5.0)
# Seconds until Beam has been imported and has put its pipeline together; of account in small runs only.
BEAM = Range(1.0, 4.0, 10.0)
# Seconds until the workers of a training group know one another, are let go, and the last checkpoint is settled.
GROUP = Range(0.1, 8.0, 30.0)
# What training takes beside its steps: gradients that are exchanged, checkpoints that are copied, looks at the student. But a
# process that has learned for a while does so quicker than one in its first steps.
BESIDE_STEPS = Range(0.8, 1.1, 1.4)
# From the memory that a student was reckoned to need to what it takes: an assumption, for buffers are not reckoned.
RECKONED_MEMORY = Range(1.0, 1.5, 2.5)
# Gradients of a certificate for each codec, and as many for the live map; and what one takes of a sample's time in training:
# there is no step with it and the forward pass is shared, but it is made in float32, and of one picture alone.
_GRADIENTS = 2
_GRADIENT = Range(0.1, 0.5, 3.0)
_SHARD_ERRORS = 3.0  # a pool falls into shards by digests: the largest has so many deviations more than the mean


@dataclass(frozen=True)
class Caching:
    """One column, stored against made anew whenever it is looked at. Seconds of one worker: `live` and `read` for each look,
    `extract` once a picture. `looks` is how often a stored picture is looked at."""

    column: str
    live: Range
    extract: Range
    read: Range
    looks: float

    @property
    def break_even(self) -> Range:
        """The number of looks from which on it pays."""
        saved = Range(self.live.low - self.read.high, self.live.likely - self.read.likely, self.live.high - self.read.low)
        return self.extract.over(saved)

    @property
    def gain(self) -> Range:
        """How many times longer it takes without."""
        return self.live.times(self.looks).over(self.extract + self.read.times(self.looks))

    @property
    def verdict(self) -> str:
        if self.gain.low > 1:
            return "pays"
        return "does not pay" if self.gain.high < 1 else "may pay or not"


@dataclass(frozen=True)
class Cost:
    """In the currency of the prices: computing once, keeping it a month."""

    computing: Range | None
    month: Range | None


@dataclass(frozen=True)
class Estimate:
    steps: list[StepForecast]
    caching: list[Caching]
    cost: Cost
    reasons: Mapping[str, str]

    @property
    def bytes(self) -> Range:
        return total(step.bytes for step in self.steps if step.bytes)

    @property
    def seconds(self) -> Range:
        return total(step.seconds for step in self.steps if step.seconds)

    @property
    def unknown(self) -> list[str]:
        """The steps that were not measured."""
        return [step.step for step in self.steps if step.seconds is None]

    @property
    def why(self) -> dict[str, list[str]]:
        """Why -> the steps whose time is not known for this reason."""
        found: dict[str, list[str]] = {}
        for name in self.unknown:
            found.setdefault(self.reasons.get(name, OTHERWISE), []).append(name)
        return found


OTHERWISE = "not tried, as a rule little beside the others"
WHY: dict[type[Stage], str] = {
    AnnotationsStage: "the files are read only by the step itself",
    SamplesStage: "what the annotations hold is known once they are read",
    PredictStage: "how long answers are shows only once a student has learned to end them",
    TrainStage: "the base whose words it needs does not lie here",
    CertificateStage: "the student's part of it is not known without that of training",
}


def estimate(
    project: Project, steps: Sequence[Step], found: Mapping[str, Artifact], measured: Measured, prices: Prices
) -> Estimate:
    """Of the steps that are not complete; their time is that of the shards which are missing."""
    states = {step.name: state_of(found[step.name], step.inputs_in(found)) for step in steps}
    left = [step for step in steps if states[step.name].kind != "done"]
    forecasts = [_of_the_rest(_forecast(step, found[step.name], measured), states[step.name]) for step in left]
    forecasts = _held_together(left, forecasts)
    looks = project.train.steps * project.train.batch / max(measured.pool.pictures, 1)
    columns = [step for step in steps if isinstance(step.stage, FeaturesStage) and step.stage.name in project.loss.distillation]
    caching = [_caching(step, found[step.name], measured, looks) for step in columns]
    kept = Range.exactly(sum(state.bytes for state in states.values() if state.kind == "done"))
    reasons = {step.name: WHY[type(step.stage)] for step in left if type(step.stage) in WHY}
    return Estimate(forecasts, caching, _cost(left, forecasts, kept, prices), reasons)


def _of_the_rest(forecast: StepForecast, state: State) -> StepForecast:
    if state.kind != "partial" or not state.total or not forecast.seconds:
        return forecast
    return replace(forecast, seconds=forecast.seconds.times(1 - state.done / state.total))


def _held_together(steps: Sequence[Step], forecasts: Sequence[StepForecast]) -> list[StepForecast]:
    """Of steps that share a pass the first holds the memory of all."""
    found, taken = {each.step: each for each in forecasts}, set[str]()
    for step in steps:
        group = [found[name] for name in (step.name, *(each.name for each in step.beside)) if name in found]
        if len(group) > 1 and step.name not in taken:
            memory = total_if_known([each.memory for each in group])
            on_device = total_if_known([each.device_memory for each in group])
            found[step.name] = replace(found[step.name], memory=memory, device_memory=on_device)
            taken |= {each.step for each in group}
    return list(found.values())


def _forecast(step: Step, artifact: Artifact, measured: Measured) -> StepForecast:
    pool, rows = measured.pool, Range.exactly(measured.pool.pictures)
    match step.stage:
        case SourceStage() if pool.drawn:
            made, seconds = (each.times(pool.pictures) for each in pool.drawn)
            return StepForecast(step.name, None, made, seconds)
        case PoolStage():
            made = pool.file_bytes.times(pool.pictures)
            return StepForecast(step.name, rows, made, _seconds(step, measured, pool.pace.look, made) + BEAM)
        case BasisStage(pictures=pictures):
            return _basis(step, measured, min(pictures, pool.pictures))
        case FeaturesStage() | SegmentsStage() if step.name in measured.stages:
            return _shown(step, artifact, measured)
        case TrainStage() if step.name in measured.stages:
            return _learned(step, step.stage, measured)
        case CertificateStage() if "train" in measured.stages and f"features/{step.stage.name}" in measured.stages:
            return _certified(step, step.stage, measured)
        case SegmentsStage() | PromptsStage() | AnnotationsStage():
            return StepForecast(step.name, rows)
        case PredictStage() if measured.evaluated is not None:
            return StepForecast(step.name, Range.exactly(measured.evaluated))
        case _:
            return StepForecast(step.name)


def _basis(step: Step, measured: Measured, pictures: int) -> StepForecast:
    pace = measured.stages[step.name.replace("basis/", "features/", 1)]
    seconds = (measured.pool.pace.decode + pace.alone["forward"]).times(pictures) + Range.exactly(pace.ready)
    memory = Range.exactly(pace.memory)
    return StepForecast(step.name, None, None, seconds, memory, _device(pace))


def _learned(step: Step, stage: TrainStage, measured: Measured) -> StepForecast:
    """Every worker learns from its share of the micro-batches; at best the next is loaded meanwhile, at worst it waits."""
    pace, config = measured.stages[step.name], stage.train
    learn, load = pace.seconds[LEARN if LEARN in pace.seconds else RECKONED], pace.seconds[LOAD]
    each = Range(max(learn.low, load.low), max(learn.likely, load.likely), learn.high + load.high)
    share = math.ceil(config.micro_batches / hands(step.resources))
    made = Range.exactly(pace.overhead.a_shard) + history_bytes(config)
    settled = Range(0.0, 0.0, measured.storage.write.seconds(made).high)
    seconds = each.times(share * config.steps).times(BESIDE_STEPS) + _warm(pace) + GROUP + settled
    sure = Range.exactly(1.0) if LEARN in pace.seconds else RECKONED_MEMORY
    memory = sure.times(pace.device_memory or pace.memory)
    held = Range(0.0, config.cache_bytes / 2, config.cache_bytes)
    if pace.device_memory:
        return StepForecast(step.name, None, made, seconds, Range.exactly(pace.memory) + held, memory)
    return StepForecast(step.name, None, made, seconds, memory + held)


def _warm(pace: StagePace) -> Range:
    """Seconds until a worker is ready: none where an earlier step left a process that has all it needs."""
    return Range(0.0, pace.ready, pace.ready)


def _certified(step: Step, stage: CertificateStage, measured: Measured) -> StepForecast:
    """The teacher looks at all its pictures; of some, the student's gradients by each codec are held against the live ones."""
    column, train = measured.stages[f"features/{stage.name}"], measured.stages["train"]
    looks = (measured.pool.pace.decode + column.alone["forward"]).times(stage.pictures + stage.basis_pictures)
    looks = looks + column.alone["forward"].times(stage.pictures)
    gradients = stage.pictures * _GRADIENTS * (len(stage.ladder) + 1)
    judged = train.alone[SAMPLE].times(gradients).times(_GRADIENT)
    encoded = column.alone["encode"].times(stage.pictures * len(stage.ladder))
    memory = Range(column.memory, column.memory + train.memory / 2, column.memory + train.memory)
    ready = _warm(column) + Range(0.0, 0.0, train.ready)
    return StepForecast(step.name, None, None, looks + judged + encoded + ready, memory)


def _shown(step: Step, artifact: Artifact, measured: Measured) -> StepForecast:
    """A step that shows each picture to a teacher."""
    pool, pace = measured.pool, measured.stages[step.name]
    made = _bytes(step, artifact, measured)
    seconds = _seconds(step, measured, total(pace.seconds.values()), made) + Range.exactly(pace.ready)
    row = made.over(max(pool.pictures, 1)) + pool.file_bytes
    return StepForecast(
        step.name,
        Range.exactly(pool.pictures),
        made,
        seconds,
        Range.exactly(pace.memory) + _largest_shard(pool.pictures, step.shards).times(row).times(COPIES),
        _device(pace),
    )


def _device(pace: StagePace) -> Range | None:
    return Range.exactly(pace.device_memory) if pace.device_memory else None


def _largest_shard(pictures: int, shards: int) -> Range:
    mean = pictures / shards
    return Range(mean, mean + math.sqrt(mean), mean + _SHARD_ERRORS * math.sqrt(mean))


def _bytes(step: Step, artifact: Artifact, measured: Measured) -> Range:
    """By the layout where it follows from the pictures' sizes, else as large as the rows that were tried."""
    pool, pace = measured.pool, measured.stages[step.name]
    a_shard = pace.overhead.a_shard + len(json.dumps(artifact.identity))
    beside = Range.mean_of([pool.pictures * pace.overhead.a_row + step.shards * a_shard] * 2)
    spec = step.stage.spec if isinstance(step.stage, FeaturesStage) else None
    if spec and pool.sizes and spec.grid != "native" and not spec.is_squeezed:
        known = sum(count * layout_bytes(spec.layout(*(spec.grid_of(*size) or ()))) for size, count in pool.sizes.items())
        return Range.exactly(known) + beside
    return Range.mean_of(pace.row_bytes, 0.0).times(pool.pictures) + beside


def _seconds(step: Step, measured: Measured, each: Range, made: Range) -> Range:
    """Of all pictures on all workers. The disk is one for all; at best it writes while they compute, at worst they wait."""
    workers = hands(step.resources)
    full = math.ceil(step.shards / workers) * workers / step.shards  # when the last shards are made, some have none
    compute = each.times(measured.pool.pictures / workers).times(Range(1.0, full, full))
    write = measured.storage.write.seconds(made)
    return Range(max(compute.low, write.low), compute.likely + write.likely, compute.high + write.high)


def _caching(step: Step, artifact: Artifact, measured: Measured, looks: float) -> Caching:
    pool, pace = measured.pool, measured.stages[step.name]
    row = _bytes(step, artifact, measured)
    once = partial(Range.over, divisor=float(max(pool.pictures, 1)))
    extract = total([*pace.seconds.values(), once(measured.storage.write.seconds(row))])
    assert isinstance(step.stage, FeaturesStage)
    return Caching(step.stage.name, pace.alone["forward"], extract, once(measured.storage.read.seconds(row)), looks)


def _cost(steps: Sequence[Step], forecasts: Sequence[StepForecast], kept: Range, prices: Prices) -> Cost:
    """`kept`: the bytes that lie there already."""
    hours = total(
        forecast.seconds.times(step.resources.gpus * step.resources.workers / 3600)
        for step, forecast in zip(steps, forecasts, strict=True)
        if forecast.seconds
    )
    kept = total([kept, *(forecast.bytes for forecast in forecasts if forecast.bytes)])
    computing = hours.times(prices.gpu_hour) if prices.gpu_hour is not None and hours.high else None
    return Cost(computing, kept.times(prices.gb_month / 1e9) if prices.gb_month is not None else None)
