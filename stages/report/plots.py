"""Line plots and bars as inline SVG and HTML. Colours are the page's CSS variables, so they follow light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 340, 176
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
MOST_POINTS = 400
NAME_WIDTH, NAME_HEIGHT = 70, 10
LOG_FROM = 8.0  # a smoothed curve that spans this factor is drawn on a log scale


@dataclass(frozen=True)
class Level:
    """A horizontal line across a plot, with a word over it."""

    value: float
    label: str


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    def unit(self, values: np.ndarray) -> np.ndarray:
        """0 at `low`, 1 at `high`."""
        low, high = (math.log10(v) if self.log else v for v in (self.low, self.high))
        raised = np.log10(np.maximum(values, self.low / 10)) if self.log else values
        return (raised - low) / (high - low)


def curve(steps: np.ndarray, values: np.ndarray, level: Level | None = None, label: str = "") -> str:
    """One plot: the values faint, their running mean strong, `level` dashed; logarithmic where the curve asks for it."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    smooth = smoothed(values)
    axis = _axis(values, smooth, [level.value] if level else [])
    across = _Axis(float(steps[0]), float(max(steps[-1], steps[0] + 1)), False)
    x = LEFT + across.unit(steps) * (WIDTH - LEFT - RIGHT)
    y_of = lambda v: HEIGHT - BOTTOM - axis.unit(np.asarray(v, float)).clip(-0.02, 1.02) * (HEIGHT - TOP - BOTTOM)  # noqa: E731
    parts = [_grid(axis, across)]
    parts.append(f'<path class="raw" d="{_path(x, y_of(values))}"/>')
    parts.append(f'<path class="smooth" d="{_path(x, y_of(smooth))}"/>')
    parts.append(f'<circle class="end" cx="{x[-1]:.1f}" cy="{float(y_of(smooth[-1])):.1f}" r="3"/>')
    parts += [_level(level, float(y_of(level.value)), float(y_of(smooth[-1])))] if level else []
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class Dot:
    """A named point of a scatter plot; `strong` sets it off from the others."""

    x: float
    y: float
    name: str
    strong: bool = False


def scatter(dots: Sequence[Dot], label: str, say: Callable[[float], str]) -> str:
    """The points, named as long as there is room, both axes logarithmic; `say` writes a number of the horizontal one."""
    xs, ys = np.array([dot.x for dot in dots]), np.array([dot.y for dot in dots])
    across, axis = (_Axis(float(each.min()) / 2, float(each.max()) * 2, True) for each in (xs, ys))
    x = LEFT + across.unit(xs) * (WIDTH - LEFT - RIGHT)
    y = HEIGHT - BOTTOM - axis.unit(ys) * (HEIGHT - TOP - BOTTOM)
    parts, named = [_grid(axis, across, say)], []
    for dot, left, top in sorted(zip(dots, x, y, strict=True), key=lambda item: not item[0].strong):
        kind, radius = ("end", 4) if dot.strong else ("dot", 3)
        parts.append(f'<circle class="{kind}" cx="{left:.1f}" cy="{top:.1f}" r="{radius}"/>')
        if all(abs(left - other) > NAME_WIDTH or abs(top - height) > NAME_HEIGHT for other, height in named):
            named.append((left, top))
            offset, anchor = (-7, "end") if left > WIDTH * 0.6 else (7, "start")
            place = f'x="{left + offset:.1f}" y="{top + 3.5:.1f}" text-anchor="{anchor}"'
            parts.append(f'<text class="tick" {place}>{escape(dot.name)}</text>')
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def smoothed(values: np.ndarray) -> np.ndarray:
    """The centred running mean over a twenty-fifth of the run, over what is there at the ends."""
    reach = max(len(values) // 50, 2)
    sums = np.concatenate(([0.0], np.cumsum(values)))
    places = np.arange(len(values))
    first, last = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _axis(values: np.ndarray, smooth: np.ndarray, levels: list[float]) -> _Axis:
    """Room for the smooth curve and the levels whole, and for all but the wildest of the raw values."""
    bulk = [*np.percentile(values, (1, 99)), *smooth, *levels]
    low, high = float(min(bulk)), float(max(bulk))
    if min(low, float(values.min())) > 0 and smooth.max() > LOG_FROM * smooth.min():
        return _Axis(low / 1.15, high * 1.15, True)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return _Axis(0.0 if 0 <= low < 0.4 * high else low - room, high + room, False)


def linear_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, some `about` of them."""
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and where they are few their multiples by 2 and 5 too."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [m * 10.0**p for p in powers for m in factors if low <= m * 10.0**p <= high]
        if len(found) >= 3:
            return found[:: -(-len(found) // 6)]
    return found


def short(value: float) -> str:
    """At most three digits that matter."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}"
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace(".0e", "e")


def _grid(axis: _Axis, across: _Axis, say: Callable[[float], str] = "{:,.0f}".format) -> str:
    parts = []
    for value in _ticks(axis):
        y = HEIGHT - BOTTOM - float(axis.unit(np.asarray(value))) * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{short(value)}</text>')
    for value in (tick for tick in _ticks(across) if across.log or tick == round(tick)):
        x = LEFT + float(across.unit(np.asarray(value))) * (WIDTH - LEFT - RIGHT)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 7}" text-anchor="middle">{say(value)}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    return "".join(parts)


def _ticks(axis: _Axis) -> list[float]:
    return log_ticks(axis.low, axis.high) if axis.log else linear_ticks(axis.low, axis.high)


def _level(level: Level, y: float, end: float) -> str:
    """The line, and its word on the side that the curve, which ends at the height `end`, leaves free."""
    line = f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    place = f'x="{WIDTH - RIGHT - 2}" y="{y - 5 if end > y else y + 12:.1f}" text-anchor="end"'
    return f'{line}<text class="level-label" {place}>{escape(level.label)}</text>'


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """At most `MOST_POINTS` of the points, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).round().astype(int))
    return "M" + " ".join(f"{x[i]:.1f},{y[i]:.1f}" for i in chosen)


def bars(shares: Sequence[tuple[str, float | None]]) -> str:
    """Thin horizontal bars over each other, one for each (kind, share of the whole width); kinds are CSS classes."""
    spans = [f'<span class="bar {kind}" style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></span>'
             for kind, share in shares if share is not None]  # fmt: skip
    return f'<span class="bars">{"".join(spans)}</span>'
