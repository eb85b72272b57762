"""What a plan foretells, for a reader and as JSON."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flows.config import Project
from flows.estimate import Caching, Estimate, estimate
from flows.plan import Plan
from flows.probe import Measured, measure
from flows.words import duration, grid, size
from schemas.storage import Folder
from stages.endurance import Pace
from stages.forecast import Prices, Range, StepForecast, write_plan


def look_ahead(project: Project, plan: Plan, prices: Prices, count: int, most: int) -> tuple[dict[str, Any], str]:
    """Measure this machine on `count` pictures and at most `most` bytes; keep what is foretold in the workspace. As JSON, and
    for a reader."""
    measured = measure(project, plan.steps, plan.found, count, most)
    found = estimate(project, plan.steps, plan.found, measured, prices)
    shown = as_json(measured, found)
    write_plan(Folder(project.workspace), shown)
    return shown, as_text(measured, found)


def as_json(measured: Measured, found: Estimate) -> dict[str, Any]:
    stored = {name: _pace_json(getattr(measured.storage, name)) for name in ("write", "read")}
    stages = {
        name: {"ready": pace.ready, **{each: asdict(s) for each, s in (pace.seconds | pace.alone).items()}}
        for name, pace in measured.stages.items()
    }
    caching = [
        {**asdict(each), "break_even": asdict(each.break_even), "gain": asdict(each.gain), "verdict": each.verdict}
        for each in found.caching
    ]
    shown = {
        "measured": {"pictures": len(measured.pool.tried), **asdict(measured.pool.pace), "storage": stored, "stages": stages},
        "steps": [step.as_json() for step in found.steps],
        "total": {"bytes": asdict(found.bytes), "seconds": asdict(found.seconds), "not_measured": found.unknown},
        "why_not_measured": found.why,
        "caching": caching,
        "cost": {name: value for name, value in asdict(found.cost).items() if value is not None},
    }
    return _finite(shown)


def _finite(value: Any) -> Any:
    """JSON has no infinity: null."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pace_json(pace: Pace) -> list[dict[str, Any]]:
    return [
        {"bytes": regime.bytes, "bytes_a_second": asdict(Range.exactly(1).over(regime.seconds_a_byte))}
        for regime in pace.regimes
    ]


def as_text(measured: Measured, found: Estimate) -> str:
    table = [("step", "rows", "bytes", "time", "memory a worker", "on the device"), *map(_cells, found.steps)]
    table.append(("all", "", _span(found.bytes, size), _span(found.seconds, duration), "", ""))
    unknown = [f"not measured: the time of {', '.join(names)}: {why}" for why, names in found.why.items()]
    return "\n".join([grid(table), *unknown, "", *_paces(measured), "", *map(_verdict, found.caching), *_costs(found)]).rstrip()


def _cells(step: StepForecast) -> tuple[str, ...]:
    shown = ((step.rows, _count), (step.bytes, size), (step.seconds, duration), (step.memory, size), (step.device_memory, size))
    return step.step, *(_span(value, words) if value else "" for value, words in shown)


def _count(value: float) -> str:
    return f"{value:.0f}"


def _span(value: Range, words: Callable[[float], str]) -> str:
    likely, low, high = words(value.likely), words(value.low), words(value.high)
    return likely if low == high else f"{likely} ({low} to {high})"


def _paces(measured: Measured) -> list[str]:
    pool = measured.pool
    lines = [f"on {len(pool.tried)} of {pool.pictures} pictures: decode {_span(pool.pace.decode, _milliseconds)} each"]
    for name, pace in measured.stages.items():
        lines.append(f"{name}: {_parts(pace.seconds)} {_each(name)}; ready after {duration(pace.ready)}")
        lines += [f"    alone: {_parts(pace.alone)}"] if pace.alone else []
    return [*lines, f"write: {_rates(measured.storage.write)}", f"read: {_rates(measured.storage.read)}"]


def _each(step: str) -> str:
    return "a micro-batch" if step == "train" else "each"


def _parts(seconds: Mapping[str, Range]) -> str:
    return ", ".join(f"{part} {_span(each, _milliseconds)}" for part, each in seconds.items())


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _rates(pace: Pace) -> str:
    rates = [(regime.bytes, _span(Range.exactly(1).over(regime.seconds_a_byte), size) + "/s") for regime in pace.regimes]
    if len(rates) == 1:
        return f"{rates[0][1]} on all of {size(rates[0][0])}; of what comes after that one knows nothing"
    *first, (_, last) = rates
    return "; ".join([f"{rate} for {size(count)}" for count, rate in first]) + f"; then {last}, by which this is planned"


def _verdict(each: Caching) -> str:
    ways = f"{_milliseconds(each.extract.likely)} once and {_milliseconds(each.read.likely)} a look"
    line = f"{each.column}: stored, {ways}; live, {_milliseconds(each.live.likely)} a look. "
    even = "never pays" if each.break_even.low == math.inf else f"pays from {_span(each.break_even, _looks)} looks a picture on"
    return f"{line}It {even}; here are {each.looks:.1f}: it {each.verdict}, live takes {_span(each.gain, _looks)} times as long"


def _looks(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "never"


def _costs(found: Estimate) -> list[str]:
    money = lambda value: f"{value:.2f}"  # noqa: E731
    named: Sequence[tuple[str, Range | None]] = (
        ("computing", found.cost.computing),
        ("a month of keeping it", found.cost.month),
    )
    return [f"cost of {name}: {_span(value, money)}" for name, value in named if value]
