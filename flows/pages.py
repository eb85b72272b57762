"""What a run leaves on its Prefect pages: a bar and a table for each step, and at the end what was done and the report."""

import base64
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from flows.results import REPORT, place, score_rows
from flows.states import StepResult
from flows.words import duration, size
from schemas.artifact import Artifact
from stages.certificate import worst_cosine
from stages.report import plots
from stages.report.fidelity import FLOOR
from stages.report.page import in_bytes

SECONDS_OF_SILENCE = 60.0
SECONDS_BETWEEN_CURVES = 60.0
MOST_ROWS = 20
BARS = "▁▂▃▄▅▆▇█"
SEEN = "seen/"  # the samples of a part so far: they rise in a line
# What the report's page says in its style sheet, for a plot that stands alone: on paper, whatever the page around it is like.
PLOT_STYLE = (
    "svg{background:#fff;font-family:sans-serif}.tick{fill:#5d626c;font-size:10.5px}.grid{stroke:#e4e4df}"
    ".axis{stroke:#b9bdc6}.dot{fill:#fff;stroke:#2352d3;stroke-width:1.5}"
)
NOT_CURVES = {"step", "steps", "samples", "tokens", "dropped_turns", "skipped", "seconds"}


def key(*words: str) -> str:
    """A key as Prefect wants it: lower case letters, digits and dashes."""
    return "-".join(re.sub("[^a-z0-9]", "-", word.lower()) for word in words)


def left(write: Callable[[], Any]) -> Any:
    """What `write` gives; None where the server does not answer: that costs the picture, not the work."""
    try:
        return write()
    except httpx.HTTPError as error:
        get_run_logger().warning("A page of this run could not be written: %s", error)
        return None


class Bar:
    """The progress bar of one step, and where it has some its curves, its pictures and what it shows. A server that does not
    answer is left alone for a minute."""

    def __init__(self, project: str, step: str):
        self.key, self.silent_until = key(project, "progress", step), 0.0
        self.curves_key, self.curves_at = key(project, "curves", step), float("-inf")
        self.look_key, self.shown_key = key(project, "look", step), key(project, "shown", step)
        self.id: UUID | None = None

    def draw(self, percent: float, line: str, curves: Mapping[int, Mapping[str, float]] | None = None) -> None:
        if time.monotonic() < self.silent_until:
            return
        if self.id is None:
            self.id = drawn = left(lambda: create_progress_artifact(percent, self.key, line))
        else:
            known = self.id
            drawn = left(lambda: update_progress_artifact(known, percent, line))
        if drawn is None:
            self.silent_until = time.monotonic() + SECONDS_OF_SILENCE
        elif curves and (time.monotonic() >= self.curves_at or percent >= 100):
            self.curves_at = time.monotonic() + SECONDS_BETWEEN_CURVES
            left(lambda: create_markdown_artifact(curves_text(curves, line), self.curves_key, line))

    def hang(self, png: bytes, title: str) -> None:
        """A picture of the step on its way; a new one is a new version of it."""
        left(lambda: create_image_artifact(_as_url(png), self.look_key, title))

    def lay(self, rows: Sequence[Mapping[str, Any]], line: str) -> None:
        """A table of what the step shows."""
        left(lambda: create_table_artifact([dict(row) for row in rows], self.shown_key, line))


def _as_url(picture: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def curves_text(curves: Mapping[int, Mapping[str, float]], line: str) -> str:
    """A line a curve, as bars from its lowest to its highest, and a table of its numbers at `MOST_ROWS` steps at most."""
    steps = _spread(sorted(curves), MOST_ROWS)
    names = [name for name in curves[steps[-1]] if name not in NOT_CURVES and not name.startswith(SEEN)]
    rows = [[f"{curves[step].get(name, float('nan')):.4g}" for name in names] for step in steps]
    bars = [f"| {name} | `{_bars([curves[step].get(name, float('nan')) for step in steps])}` |" for name in names]
    table = [f"| {' | '.join([str(step), *row])} |" for step, row in zip(steps, rows, strict=True)]
    heads = [
        ["| what | first to last |", "|---|---|"],
        [f"| {' | '.join(['step', *names])} |", "|---" * (len(names) + 1) + "|"],
    ]
    return "\n".join([line, "", *heads[0], *bars, "", *heads[1], *table, *_seen(curves), ""])


def _seen(curves: Mapping[int, Mapping[str, float]]) -> list[str]:
    """A table of the latest counts of samples."""
    known = [numbers for _, numbers in sorted(curves.items()) if any(name.startswith(SEEN) for name in numbers)]
    latest = known[-1] if known else {}
    rows = [f"| {name.removeprefix(SEEN)} | {count:,} |" for name, count in latest.items() if name.startswith(SEEN)]
    return ["", "| part | samples so far |", "|---|---|", *rows] if rows else []


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly, the first and the last among them."""
    count = min(len(items), most)
    return [items[round(place * (len(items) - 1) / max(count - 1, 1))] for place in range(count)]


def _bars(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(BARS) - 1) / ((high - low) or 1.0)
    return "".join(BARS[round((value - low) * scale)] if math.isfinite(value) else " " for value in values)


def show_step(project: str, made: StepResult) -> None:
    """The table of one step, on the page of its task run and, with its history, among the artifacts."""
    rows = [{"what": name, "value": value} for name, value in _facts(made).items()]
    left(lambda: create_table_artifact(rows, key(project, "step", made.step), f"{made.step}: {made.how}, {made.why}"))


def show_certificate(project: str, made: StepResult, codecs: Sequence[Mapping[str, Any]]) -> None:
    """What each codec of a column costs the student, a row a codec; and as the plot that the report draws."""
    what = f"{made.step}: what storing the teacher's features costs, by codec"
    left(lambda: create_table_artifact([dict(row) for row in codecs], key(project, "step", made.step, "codecs"), what))
    plot, what = _certificate_plot(codecs), f"{made.step}: 1 - gradient cosine over bytes a picture"
    left(lambda: create_image_artifact(_as_url(plot, "svg+xml"), key(project, "step", made.step, "plot"), what))


def _certificate_plot(codecs: Sequence[Mapping[str, Any]]) -> bytes:
    """An SVG of its own."""
    dots = [plots.Dot(row["bytes_an_image"], max(1 - worst_cosine(row), FLOOR), row["codec"]) for row in codecs]
    svg = plots.scatter(dots, "bytes of a picture and loss of gradient", in_bytes)
    size = f'width="{2 * plots.WIDTH}" height="{2 * plots.HEIGHT}"'
    opening, rest = svg.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg" {size}><style>{PLOT_STYLE}</style>{rest}'.encode()


def show_run(project: str, made: Sequence[StepResult]) -> None:
    """What the run did, a row a step."""
    names = ("how", "why", "rows", "errors", "bytes", "seconds")
    rows = [{"step": one.step} | {name: _facts(one)[name] for name in names} for one in made]
    left(lambda: create_table_artifact(rows, key(project, "steps"), "What was computed, what was reused, and why"))


def _facts(made: StepResult) -> dict[str, Any]:
    rate = round(made.state.rows / made.seconds, 1) if made.seconds and made.state.rows else None
    return {
        "how": made.how,
        "why": made.why,
        "rows": made.state.rows,
        "errors": made.failed,
        "bytes": made.state.bytes,
        "size": size(made.state.bytes),
        "seconds": round(made.seconds, 2),
        "images/s": rate,
        "where": made.where,
    }


def line(made: StepResult) -> str:
    """The same in a line, for the terminal."""
    if made.how == "reused":
        return f"{made.step}: reused, {made.why}"
    counts = [f"{made.state.rows} rows, {made.failed} failed"] if made.state.rows else []
    return " · ".join([f"{made.step}: computed in {duration(made.seconds)}", *counts, size(made.state.bytes)])


def show_report(project: str, report: Artifact, metrics: Mapping[str, Any]) -> None:
    """The way to the report, and its numbers."""
    path = place(report, REPORT)
    where = f"file://{path}" if report.folder.is_local else path
    rows = "\n".join(f"| {' | '.join(row)} |" for row in score_rows(metrics))
    text = f"# [{path}]({where})\n\n| task | metric | trained | untrained |\n|---|---|---|---|\n{rows}\n"
    left(lambda: create_markdown_artifact(text, key(project, "report"), "The report and its scores"))


def show_picture(project: str, png: bytes) -> None:
    """What the trained student segmented and wrote."""
    left(lambda: create_image_artifact(_as_url(png), key(project, "predictions"), "Predictions of the trained student"))
