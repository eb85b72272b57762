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
from stages.basis import BasisStage
from stages.features import FeaturesStage
from stages.forecast import Prices, Range, StepForecast, total, total_if_known
from stages.pool import PoolStage
from stages.probe import StagePace
from stages.prompts import PromptsStage
from stages.segments import SegmentsStage
from stages.source import SourceStage

# How often the rows of a shard lie in a worker's memory at most, while they become a file: as they are made, in one piece, as
# the file that grows, and as the file that is signed. Measured: 4.0.
COPIES = Range(1.0, 4.0, 5.0)
# Seconds until Beam has been imported and has put its pipeline together; of account in small runs only.
BEAM = Range(1.0, 4.0, 10.0)
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
    return Estimate(forecasts, caching, _cost(left, forecasts, kept, prices))


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
        case SegmentsStage() | PromptsStage():
            return StepForecast(step.name, rows)
        case _:
            return StepForecast(step.name)


def _basis(step: Step, measured: Measured, pictures: int) -> StepForecast:
    pace = measured.stages[step.name.replace("basis/", "features/", 1)]
    seconds = (measured.pool.pace.decode + pace.alone["forward"]).times(pictures) + Range.exactly(pace.ready)
    memory = Range.exactly(pace.memory)
    return StepForecast(step.name, None, None, seconds, memory, _device(pace))


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
