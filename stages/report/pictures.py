"""Contact sheets: what is in an artifact, at a glance, as one PNG. `sailyard show --sheet` shows them."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from schemas.artifact import Artifact
from schemas.dialogue import PromptSlot
from schemas.errors import DataError
from schemas.regions import Rle, Segment, VisualPrompt
from schemas.tables import revive
from stages.report import drawing
from stages.report.reading import Spot, feature, good_spots, picture, rows_at, sample

TILE, GAP, COLUMNS, LINES = 256, 12, 4, 4
PAPER, INK, FAINT = (252, 252, 250), (28, 30, 34), (112, 116, 124)

Tile = tuple[Image.Image, str]


def sheet(artifact: Artifact, images: Artifact | None = None, count: int = 12) -> bytes:
    """A PNG of `count` rows of `artifact`, the same ones each time, drawn on their pictures from `images`."""
    if artifact.table is None:
        raise DataError("this artifact holds files, there is nothing to draw", artifact.where, "Name a table.")
    pool = artifact if artifact.table.name == "images" else images
    spots = sample(set(good_spots(artifact)), count, seed=0)
    makers = {
        "images": _image_tiles,
        "annotations": _segment_tiles,
        "segments": _segment_tiles,
        "prompts": _prompt_tiles,
        "features": _feature_tiles,
        "samples": _sample_tiles,
        "predictions": _prediction_tiles,
    }
    return laid_out(list(makers[artifact.table.name](artifact, pool, spots)), artifact.name or artifact.table.name)


def shown(images: Artifact | None, spot: Spot, side: int, size: tuple[int, int] | None = None) -> Image.Image:
    """The picture with its longer side at `side`; a grey one, of the shape of `size`, where there is none."""
    found = picture(images, spot) if images else None
    return drawing.fitted(found or drawing.blank(*(size or (side, side))), side)


def _size(rles: list[Rle]) -> tuple[int, int] | None:
    return (rles[0].width, rles[0].height) if rles else None


def _image_tiles(artifact: Artifact, images: Artifact | None, spots: list[Spot]) -> Iterator[Tile]:
    for spot in spots:
        row = rows_at(artifact, spot, ["width", "height", "format", "aliases"])[0]
        names = row["aliases"][:1] or [spot.image_key]
        yield shown(images, spot, TILE), f"{row['width']} x {row['height']} {row['format']}\n{names[0]}"


def _segment_tiles(artifact: Artifact, images: Artifact | None, spots: list[Spot]) -> Iterator[Tile]:
    column = "objects" if artifact.table and artifact.table.name == "annotations" else "segments"
    for spot in spots:
        segments = revive(list[Segment], rows_at(artifact, spot, [column])[0][column])
        base = shown(images, spot, TILE, _size([segment.rle for segment in segments]))
        yield coloured(base, segments), f"{len(segments)} segments\n{', '.join(s.category for s in segments)}"


def coloured(base: Image.Image, segments: list[Segment]) -> Image.Image:
    """Every segment in its own colour under its name, the large below the small."""
    drawn = base
    order = sorted(range(len(segments)), key=lambda n: -segments[n].rle.area)
    for n in order:
        drawn = drawing.filled(drawn, segments[n].rle.mask(), drawing.SERIES[n % len(drawing.SERIES)], 0.55)
    for n in order:
        x0, y0, x1, y1 = segments[n].rle.box
        scale = base.width / segments[n].rle.width
        colour = drawing.SERIES[n % len(drawing.SERIES)]
        drawing.badge(drawn, segments[n].category[:18], ((x0 + x1) / 2 * scale, (y0 + y1) / 2 * scale), colour, 12)
    return drawn


def _prompt_tiles(artifact: Artifact, images: Artifact | None, spots: list[Spot]) -> Iterator[Tile]:
    for spot in spots:
        prompts = revive(list[VisualPrompt], rows_at(artifact, spot, ["prompts"])[0]["prompts"])
        drawn = shown(images, spot, TILE, _size([prompt.rle for prompt in prompts]))
        for prompt in one_of_each_kind(prompts):
            drawn = drawing.pointed(drawn, prompt, drawing.SERIES[prompt.segment_id % len(drawing.SERIES)])
        yield drawn, "\n".join(f"{p.kind}: {p.text}" for p in one_of_each_kind(prompts))


def one_of_each_kind(prompts: list[VisualPrompt]) -> list[VisualPrompt]:
    """A mask, a box, a scribble and a point, each of another segment as long as there are others."""
    chosen: list[VisualPrompt] = []
    for kind in ("mask", "box", "scribble", "point"):
        taken = {prompt.segment_id for prompt in chosen}
        of_kind = [prompt for prompt in prompts if prompt.kind == kind]
        fresh = [prompt for prompt in of_kind if prompt.segment_id not in taken]
        chosen += (fresh or of_kind)[:1]
    return chosen


def _feature_tiles(artifact: Artifact, images: Artifact | None, spots: list[Spot]) -> Iterator[Tile]:
    maps = {spot: found for spot in spots if (found := feature(artifact, spot)) is not None}
    if not maps:
        return
    palette = drawing.Palette.of(list(maps.values()))
    for spot, feature_CHW in maps.items():
        base = shown(images, spot, TILE, feature_CHW.shape[:0:-1])
        pair = Image.new("RGB", (TILE, max(base.height // 2, 1)))
        half = TILE // 2, pair.height
        pair.paste(base.resize(half), (0, 0))
        pair.paste(palette.paint(feature_CHW, half), (half[0], 0))
        yield pair, f"{' x '.join(map(str, feature_CHW.shape))}\n{palette.explained:.0%} of the variance shown"


def _sample_tiles(artifact: Artifact, images: Artifact | None, spots: list[Spot]) -> Iterator[Tile]:
    for spot in spots:
        row = _one(artifact, spot, ["sample_id", "task", "turns", "masks", "prompts"])
        masks, slots = revive(list[Rle], row["masks"]), revive(list[PromptSlot], row["prompts"])
        drawn = shown(images, spot, TILE, _size(masks + [slot.rle for slot in slots]))
        for rle in masks:
            drawn = drawing.outlined(drawn, rle.mask(), drawing.TARGET)
        for slot in slots:
            drawn = drawing.marked(drawn, slot.rle.mask(), str(slot.index))
        yield drawn, f"{row['task']}: {row['turns'][0]['question']}\n{row['turns'][0]['answer']}"


def _prediction_tiles(artifact: Artifact, images: Artifact | None, spots: list[Spot]) -> Iterator[Tile]:
    for spot in spots:
        row = _one(artifact, spot, ["sample_id", "question", "expected", "text", "targets", "masks"])
        targets, masks = revive(list[Rle], row["targets"]), revive(list[Rle], row["masks"])
        base = shown(images, spot, TILE, _size(targets + masks))
        yield answer_tile(base, row["question"], row["expected"], row["text"], targets=targets, masks=masks)


def answer_tile(base: Image.Image, question: str, expected: str, written: str, *, targets: list[Rle], masks: list[Rle]) -> Tile:
    """A question with what was expected and what was written, under the picture with the masks of both."""
    return answered(base, targets, masks), f"{question}\nexpected: {expected}\nwritten: {written}"


def _one(artifact: Artifact, spot: Spot, columns: list[str]) -> dict[str, Any]:
    """One of a picture's dialogues, always the same."""
    rows = {row["sample_id"]: row for row in rows_at(artifact, spot, columns)}
    return rows[sample(rows, 1, seed=0)[0]]


def answered(base: Image.Image, targets: list[Rle], masks: list[Rle], void: Sequence[Rle] = ()) -> Image.Image:
    """What was to be segmented as an outline, what the student segmented hatched, and what is not scored darkened."""
    drawn = base
    for rle in void:
        drawn = drawing.filled(drawn, rle.mask(), drawing.CASING, 0.6)
    for rle in masks[:1]:
        drawn = drawing.hatched(drawn, rle.mask(), drawing.PREDICTION)
    for rle in targets:
        drawn = drawing.outlined(drawn, rle.mask(), drawing.TARGET)
    return drawn


def laid_out(tiles: list[Tile], title: str) -> bytes:
    """The tiles under each other in rows, each over its text; a row is as high as its highest tile."""
    font, head = ImageFont.load_default(size=13), ImageFont.load_default(size=18)
    rows = [tiles[start : start + COLUMNS] for start in range(0, len(tiles), COLUMNS)]
    text_height = LINES * 17 + GAP
    tops = [GAP * 2 + 24]
    for row in rows:
        tops.append(tops[-1] + max(image.height for image, _ in row) + text_height + GAP)
    wide = GAP + max(min(len(tiles), COLUMNS), 2) * (TILE + GAP)
    page = Image.new("RGB", (wide, tops[-1]), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((GAP, GAP), title, font=head, fill=INK)
    for top, row in zip(tops, rows, strict=False):
        for column, (image, text) in enumerate(row):
            left = GAP + column * (TILE + GAP)
            page.paste(image, (left, top))
            parts = text.split("\n")
            lines = [line for part in parts for line in drawing.wrapped(part, TILE, font, LINES)]
            for number, line in enumerate(lines[:LINES]):
                pen.text((left, top + image.height + 5 + 17 * number), line, font=font, fill=INK if number == 0 else FAINT)
    sink = io.BytesIO()
    page.save(sink, "PNG")
    return sink.getvalue()
