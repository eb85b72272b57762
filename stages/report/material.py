"""What the student learned from: the teachers' features, the visual prompts, and the data in numbers."""

from collections.abc import Mapping
from html import escape
from typing import Any

from PIL import Image

from schemas.artifact import Artifact
from schemas.regions import VisualPrompt
from schemas.tables import revive
from stages.report import contents, drawing
from stages.report.evidence import Report
from stages.report.page import details, figure, img, in_bytes, in_time, lead, listed, plural, table
from stages.report.pictures import one_of_each_kind, shown
from stages.report.reading import Spot, feature, good_spots, row_at, sample

SIDE = 320
MARKS = (drawing.PROMPT, (64, 196, 255), drawing.PREDICTION, drawing.TARGET)  # a colour each for four prompts of a picture


def teachers(report: Report) -> str:
    """Each picture over its features, a row a teacher, three principal components as red, green and blue."""
    found = report.under("features")
    if report.images is None or not found:
        return ""
    spots = sample(good_spots(report.images), min(report.examples, 8), report.seed)
    pictures = {spot: shown(report.images, spot, SIDE) for spot in spots}
    rows = [_row("<b>picture</b>", [img(picture, "picture") for picture in pictures.values()])]
    for name, artifact in found.items():
        rows += _painted(name, artifact, pictures, report.family[artifact.name or f"features/{name}"].weights)
    said = (
        "Three principal components of each teacher's channels as red, green and blue, fitted over these pictures together: "
        "within a row, like colours are like features. Cells are the stored grid."
    )
    return lead(said) + "".join(rows)


def _row(head: str, cells: list[str]) -> str:
    columns = f"grid-template-columns:112px repeat({len(cells)},1fr)"
    return f'<div class="grids" style="{columns}"><span>{head}</span>{"".join(cells)}</div>'


def _painted(name: str, artifact: Artifact, pictures: dict[Spot, Image.Image], weights: str | None) -> list[str]:
    maps = {spot: found for spot in pictures if (found := feature(artifact, spot)) is not None}
    if not maps:
        return []
    palette = drawing.Palette.of(list(maps.values()))
    missing = '<span class="soft">failed</span>'
    cells = [
        img(palette.paint(maps[spot], picture.size), f"features of {name}") if spot in maps else missing
        for spot, picture in pictures.items()
    ]
    channels, height, width = next(iter(maps.values())).shape
    size = f"{channels} × {height} × {width}, {palette.explained:.0%} of the variance shown"
    known = f"weights {escape(weights.rsplit('/', 1)[-1])}<br>" if weights else ""
    return [_row(f"<b>{escape(name)}</b>{known}{size}", cells)]


def prompts(report: Report) -> str:
    """Pictures with a point, a box, a scribble and a mask, each on another segment where there are as many."""
    artifact = report.inputs.get("prompts")
    if artifact is None:
        return ""
    figures = []
    for spot in sample(good_spots(artifact), report.examples, report.seed):
        row = row_at(artifact, spot, ["prompts"]) or {"prompts": []}
        chosen = one_of_each_kind(revive(list[VisualPrompt], row["prompts"]))
        if chosen:
            figures.append(_prompted(report, spot, chosen))
    if not figures:
        return ""
    said = (
        "A hand may point by a dot, a box, a stroke or a region. Each mark follows from the seed, the picture and the segment."
    )
    return lead(said) + f'<div class="sheet four">{"".join(figures)}</div>'


def _prompted(report: Report, spot: Spot, chosen: list[VisualPrompt]) -> str:
    drawn = shown(report.images, spot, SIDE, (chosen[0].rle.width, chosen[0].rle.height))
    lines = []
    for number, prompt in enumerate(chosen):
        colour = MARKS[number]
        drawn = drawing.pointed(drawn, prompt, colour)
        swatch = f'<b style="color:rgb{colour}">■</b>'
        lines.append(f"<p>{swatch} {prompt.kind}: {escape(prompt.text)}</p>")
    return figure(drawn, "visual prompts", "".join(lines))


def data(report: Report) -> str:
    """Rows, failures, bytes and time of every artifact, what the tables hold, and every fault."""
    rows = []
    for name, made in report.metrics["artifacts"].items():
        rate = f"{made['rows_per_second']:,.1f}" if made["rows_per_second"] else ""
        time = in_time(made["seconds"]) if made["seconds"] is not None else ""
        count = f"{made['rows']:,}" if made["rows"] else ""
        failed = f'<b class="bad">{made["failed"]:,}</b>' if made["failed"] else ("0" if made["rows"] else "")
        rows.append([f"<code>{escape(name)}</code>", f"{made['parts']:,}", count, failed, in_bytes(made["bytes"]), time, rate])
    heads = ["Artifact", "Files", "Rows", "Failed", "Size", "Time", "Rows a second"]
    rows_of = [[f"<code>{escape(name)}</code>", _holds(counts)] for name, counts in report.metrics["contents"].items()]
    inside = "<h3>What the tables hold</h3>" + table(["Artifact", "Holds"], rows_of) if rows_of else ""
    return table(heads, rows, numbers=(1, 2, 3, 4, 5, 6)) + inside + _faults(report)


def _holds(counts: Mapping[str, Any]) -> str:
    parts = {name: f"{count:,} {escape(name)}" for name, count in counts.items() if isinstance(count, int)}
    groups = [f"{escape(name)}: {_holds(inner)}" for name, inner in counts.items() if name not in parts]
    return "<br>".join([", ".join(parts.values()), *groups] if parts else groups)


def _faults(report: Report) -> str:
    """Everything that went wrong with single rows and statements, folded away."""
    folded = []
    if "annotations" in report.inputs:
        lines = list(contents.faults(report.inputs["annotations"]))
        folded += [details(f"<b>{plural(len(lines), 'fault')}</b> in what the datasets say", listed(lines))] if lines else []
    for name, made in report.family.items():
        if made.record and made.record.failures:
            what = f"<b>{plural(len(made.record.failures), 'failure')}</b> in <code>{escape(name)}</code>"
            folded.append(details(what, listed(made.record.failures)))
    return "<h3>Faults</h3>" + (
        "".join(folded) or '<p class="soft">None: every row was made, every statement could be used.</p>'
    )
