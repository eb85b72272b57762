"""What the parts of a student are worth: scores of each rung of the ladder over several seeds, and its gain over the one below.

Means stand with a 95 % interval by Student's t over the seeds. A gain is taken seed by seed: two rungs of one seed see the same
dialogues in the same order, so that what chance does to both falls out.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from stages.report import plots
from stages.report.page import document, lead, plural, table
from stages.report.results import NAMES, TASKS

# The quantile of 97.5 % by degrees of freedom: an interval over one seed more.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
MOST_SEEDS = max(T) + 1
SCORES = ("segmentation/ciou", "reference/ciou", "caption/meteor", "caption/cider", "choice/accuracy")
BAR = 7  # half the width of a whisker's end

Values = Mapping[str, Sequence[float]]  # score -> one value a seed


@dataclass(frozen=True)
class Rung:
    """`values` of each score, in the order of the seeds; `below` is the name of the rung that it has one part more than."""

    name: str
    title: str
    below: str | None
    values: Values


@dataclass(frozen=True)
class Interval:
    """A mean, and half the width of its interval, which one value alone does not have."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        if len(values) == 1:
            return cls(values[0], None)
        return cls(statistics.mean(values), T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values)))

    @property
    def is_clear(self) -> bool:
        """Whether zero lies outside."""
        return self.half is not None and abs(self.mean) > self.half

    def text(self, sign: str = "") -> str:
        """In per cent."""
        return f"{100 * self.mean:{sign}.1f}" + ("" if self.half is None else f" ± {100 * self.half:.1f}")


@dataclass(frozen=True)
class Ladder:
    seeds: Sequence[int]
    steps: int
    rungs: Sequence[Rung]

    @property
    def scores(self) -> list[str]:
        """Those that every rung has."""
        return [score for score in SCORES if all(score in rung.values for rung in self.rungs)]

    def gains(self, rung: Rung) -> dict[str, Interval]:
        """By score; nothing for a rung without one below it."""
        below = next((other for other in self.rungs if other.name == rung.below), None)
        if below is None:
            return {}
        pairs = {score: zip(rung.values[score], below.values[score], strict=True) for score in self.scores}
        return {score: Interval.of([high - low for high, low in each]) for score, each in pairs.items()}

    def label(self, rung: Rung) -> str:
        return f"{self.rungs.index(rung) + 1} {rung.title}"

    def gain_label(self, rung: Rung) -> str:
        return f"gain over {1 + next(number for number, other in enumerate(self.rungs) if other.name == rung.below)}"

    def rows(self) -> list[tuple[str, ...]]:
        """Heads, then for each rung its scores and, under them, its gain; a star where zero is out of the interval."""
        lines: list[tuple[str, ...]] = [("", *map(_said, self.scores))]
        for rung in self.rungs:
            lines.append((self.label(rung), *(Interval.of(rung.values[score]).text() for score in self.scores)))
            gains = self.gains(rung)
            if gains:
                texts = (gain.text("+") + ("*" if gain.is_clear else "") for gain in gains.values())
                lines.append((f"  {self.gain_label(rung)}", *texts))
        return lines

    def as_json(self) -> dict[str, Any]:
        return {"seeds": list(self.seeds), "steps": self.steps, "rungs": [self._as_json(rung) for rung in self.rungs]}

    def _as_json(self, rung: Rung) -> dict[str, Any]:
        values = {score: list(rung.values[score]) for score in self.scores}
        return {
            "name": rung.name,
            "title": rung.title,
            "below": rung.below,
            "scores": {score: {"values": each} | vars(Interval.of(each)) for score, each in values.items()},
            "gains": {score: vars(gain) | {"is_clear": gain.is_clear} for score, gain in self.gains(rung).items()},
        }


def page(ladder: Ladder) -> str:
    """One HTML page: a plot a score, and the table."""
    seeds = plural(len(ladder.seeds), "seed")
    header = f'<p class="kicker">Sailyard ladder</p><h1>What each part is worth</h1><p class="facts">{seeds} · '
    header += f"{plural(ladder.steps, 'step')} each</p>"
    figures = "".join(
        f"<figure><figcaption><b>{escape(_said(score))}</b></figcaption>{_plot(ladder, score)}</figure>"
        for score in ladder.scores
    )
    sections = [
        ("plots", "The rungs", lead(_DRAWN) + f'<div class="plots">{figures}</div>'),
        ("table", "In numbers", lead(_READING) + _table(ladder)),
    ]
    return document("Sailyard ladder", header, sections, "The numbers lie beside this page, in ladder.json.")


_DRAWN = (
    "Each rung has one part more than the one that it extends. A small circle is a seed, a large one the mean of all, "
    "with its 95 % interval."
)
_READING = (
    "Per cent, CIDEr-D of 1000: the mean over the seeds ± half of its 95 % interval. A gain is over the rung that is extended, "
    "seed by seed; bold where its interval leaves zero out."
)


def _said(score: str) -> str:
    task, name = score.split("/")
    return f"{TASKS[task]}, {NAMES[name][0]}"


def _table(ladder: Ladder) -> str:
    rows = []
    for rung in ladder.rungs:
        rows.append([escape(ladder.label(rung)), "", *(Interval.of(rung.values[score]).text() for score in ladder.scores)])
        texts = [f"<b>{gain.text('+')}</b>" if gain.is_clear else gain.text("+") for gain in ladder.gains(rung).values()]
        rows += [["", ladder.gain_label(rung), *texts]] if texts else []
    heads = ["Rung", "", *map(_said, ladder.scores)]
    return table(heads, rows, numbers=range(1, len(heads)))


def _plot(ladder: Ladder, score: str) -> str:
    """The rungs from left to right by their numbers."""
    found = [Interval.of(rung.values[score]) for rung in ladder.rungs]
    reach = [interval.mean + sign * (interval.half or 0) for interval in found for sign in (-1, 1)]
    top = max(*reach, *(value for rung in ladder.rungs for value in rung.values[score])) * 1.08 or 1.0
    y = lambda value: plots.HEIGHT - plots.BOTTOM - max(value, 0) / top * (plots.HEIGHT - plots.TOP - plots.BOTTOM)  # noqa: E731
    across = (plots.WIDTH - plots.LEFT - plots.RIGHT) / len(found)
    parts = [_level(y(tick), tick) for tick in plots.linear_ticks(0, top)]
    for number, (rung, interval) in enumerate(zip(ladder.rungs, found, strict=True)):
        x = plots.LEFT + across * (number + 0.5)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{plots.HEIGHT - 7}" text-anchor="middle">{number + 1}</text>')
        parts += [f'<circle class="dot" cx="{x - 14:.1f}" cy="{y(value):.1f}" r="2.5"/>' for value in rung.values[score]]
        parts += [_whisker(x, y(interval.mean - interval.half), y(interval.mean + interval.half))] if interval.half else []
        parts.append(f'<circle class="end" cx="{x:.1f}" cy="{y(interval.mean):.1f}" r="4"/>')
    size = f"0 0 {plots.WIDTH} {plots.HEIGHT}"
    return f'<svg class="plot" viewBox="{size}" role="img" aria-label="{escape(_said(score))}">{"".join(parts)}</svg>'


def _level(y: float, value: float) -> str:
    line = f'<line class="grid" x1="{plots.LEFT}" x2="{plots.WIDTH - plots.RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="tick" x="{plots.LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{100 * value:.3g}</text>'


def _whisker(x: float, low: float, high: float) -> str:
    ends = "".join(f"M{x - BAR:.1f},{y:.1f}H{x + BAR:.1f}" for y in (low, high))
    return f'<path class="smooth" d="M{x:.1f},{low:.1f}V{high:.1f}{ends}"/>'
