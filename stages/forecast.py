"""What a run is foretold to take, as ranges, and what it took: the one is written before the run, the other stands in the
records, and the report puts them side by side.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import fmean, stdev
from typing import Any, Self

from pydantic import Field

from schemas.artifact import Artifact, Record
from schemas.config import Config
from schemas.errors import BrokenArtifact
from schemas.storage import Folder

PLAN = "plan.json"
# In the record of a step: those whose shards were made along with its own; and the one along with whose all of its own were.
ONE_PASS, ONE_PASS_BY = "one_pass_with", "one_pass_by"
REPEATABLE = 0.1  # the same work on the same machine an hour later; a shorter measurement cannot promise more
_ERRORS = 3.0  # standard errors to each side of a mean


class Prices(Config):
    """What an hour of a GPU and a gigabyte kept for a month cost, in whatever currency."""

    gpu_hour: float | None = Field(default=None, ge=0)
    gb_month: float | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class Range:
    """A quantity that is not negative: what is likely, and between which bounds it is believed to lie."""

    low: float
    likely: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Self:
        return cls(value, value, value)

    @classmethod
    def mean_of(cls, samples: Sequence[float], at_least: float = REPEATABLE) -> Self:
        """The mean of what `samples` were drawn from: three standard errors to each side, and never less than the part
        `at_least` of it; but hardly below the least of them."""
        mean = fmean(samples)
        error = _ERRORS * stdev(samples) / math.sqrt(len(samples)) if len(samples) > 1 else mean
        margin = max(error, at_least * mean)
        return cls(max(mean - margin, (1 - at_least) * min(samples)), mean, mean + margin)

    @classmethod
    def around(cls, ranges: Sequence["Range"]) -> Self:
        """All of them, and the mean of what they hold likely."""
        likely = fmean(each.likely for each in ranges)
        return cls(min(each.low for each in ranges), likely, max(each.high for each in ranges))

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def times(self, factor: "Range | float") -> "Range":
        by = factor if isinstance(factor, Range) else Range.exactly(factor)
        return Range(self.low * by.low, self.likely * by.likely, self.high * by.high)

    def over(self, divisor: "Range | float") -> "Range":
        by = divisor if isinstance(divisor, Range) else Range.exactly(divisor)
        quotient = lambda value, part: value / part if part > 0 else math.inf  # noqa: E731
        return Range(quotient(self.low, by.high), quotient(self.likely, by.likely), quotient(self.high, by.low))

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


NOTHING = Range.exactly(0.0)


def total(ranges: Iterable[Range]) -> Range:
    return sum(ranges, NOTHING)


def total_if_known(ranges: Sequence[Range | None]) -> Range | None:
    """Their sum; None where one is not known."""
    known = [each for each in ranges if each]
    return total(known) if len(known) == len(ranges) else None


@dataclass(frozen=True)
class StepForecast:
    """What a step is foretold to make, and to take: seconds from its start to its seal, and the bytes of memory that each of
    its workers needs (and of its device, where it has one). None is not known."""

    step: str
    rows: Range | None = None
    bytes: Range | None = None
    seconds: Range | None = None
    memory: Range | None = None
    device_memory: Range | None = None

    def as_json(self) -> dict[str, Any]:
        """Without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Comparison:
    """A foretold number of a step against the one in its record."""

    step: str
    what: str
    foretold: Range
    actual: float

    @property
    def held(self) -> bool:
        return self.actual in self.foretold


def write_plan(workspace: Folder, plan: Mapping[str, Any]) -> None:
    """Keep the plan; of a step that it no longer speaks of, because it is complete, what was foretold before stays."""
    earlier = {name: forecast.as_json() for name, forecast in read_plan(workspace).items()}
    steps = earlier | {step["step"]: step for step in plan["steps"]}
    workspace.write(PLAN, json.dumps({**plan, "steps": list(steps.values())}, indent=1).encode())


def read_plan(workspace: Folder) -> dict[str, StepForecast]:
    """step -> what `sailyard plan --probe` last foretold of it; empty where nothing was."""
    try:
        steps = json.loads(workspace.read(PLAN))["steps"]
        return {each["step"]: _revived(each) for each in steps}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError) as error:
        remedy = "Delete it, or run `sailyard plan --probe` again."
        raise BrokenArtifact(f"the plan cannot be read: {error!r}", workspace.path(PLAN), remedy) from None


def _revived(fields: Mapping[str, Any]) -> StepForecast:
    ranges = {name: Range(**value) for name, value in fields.items() if isinstance(value, Mapping)}
    return StepForecast(step=fields["step"], **ranges)


def compared(plan: Mapping[str, StepForecast], artifacts: Mapping[str, Artifact]) -> list[Comparison]:
    """Every number that was foretold of a step that is complete now, against what its record says: rows, bytes, seconds. Of
    steps that shared a pass the first took the seconds of all."""
    records = {name: record for name in plan if name in artifacts and (record := artifacts[name].record())}
    found = []
    for name, record in records.items():
        made = (name, *record.summary.get(ONE_PASS, ()))
        seconds = total_if_known([plan[each].seconds if each in plan else None for each in made])
        foretold = {"rows": plan[name].rows, "bytes": plan[name].bytes}
        foretold |= {} if ONE_PASS_BY in record.summary else {"seconds": seconds}
        facts = _facts(record)
        found += [Comparison(name, what, said, facts[what]) for what, said in foretold.items() if said and what in facts]
    return found


def _facts(record: Record) -> Mapping[str, float]:
    """Plain files count as no rows."""
    took = datetime.fromisoformat(record.ended) - datetime.fromisoformat(record.started)
    rows = {"rows": record.rows} if record.table else {}
    return rows | {"bytes": record.total_bytes, "seconds": took.total_seconds()}


def as_rows(comparisons: Iterable[Comparison]) -> list[dict[str, Any]]:
    """For a page or JSON."""
    return [{**asdict(each), "held": each.held} for each in comparisons]
