"""ReasonSeg, as LISA publishes it: a folder with a JSON beside each JPEG, its outlines and what is asked for.

Outlines are drawn as there: border and inside, the largest first, so that a smaller one stands on a larger. What is neither
target nor to be ignored is background. What is to be ignored is kept as a crowd of the category `ignored`, apart from the
target. A target may be empty: then nothing is to be found. To be evaluated, a record asks its first question alone.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from schemas.annotations import Reference
from schemas.errors import ConfigError, DataError
from schemas.regions import Rle
from schemas.storage import Folder
from stages.phrases import REASON, REASON_WHAT
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable, split_of, unmarked

IGNORED = "ignored"
_DEPRECATED = "flag"  # a label without a meaning
_BACKGROUND, _WANTED, _IGNORED = 0, 1, 2


def names(folder: Folder) -> list[str]:
    """The JSON files of a folder of ReasonSeg, in order."""
    found = sorted(name for name in folder.tree() if name.endswith(".json"))
    if not found:
        raise ConfigError("there is no JSON file here, or no such folder", folder.url, "Check the path.")
    return found


def records(folder: Folder) -> Iterator[dict[str, Any]]:
    """What each file says, under `said`, and its name without the ending, under `name`."""
    for name in names(folder):
        data = folder.read(name)
        try:
            said = json.loads(_text(data))
        except ValueError as error:
            raise DataError(f"not valid JSON: {error}", folder.path(name), "Get the file again.") from None
        yield {"name": name.removesuffix(".json"), "said": said}


def _text(data: bytes) -> str:
    """Some of the published files are not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")


def flatten_question(file: SourceFile, record: Any) -> list[Statement]:
    """One statement a question."""
    said, form = record["said"], REASON if record["said"]["is_sentence"] else REASON_WHAT
    texts = said["text"]
    if not isinstance(texts, list) or not texts:
        raise Unusable("text", "it asks nothing")
    shapes = [(each["label"], each["points"]) for each in said["shapes"]]
    asked = texts if file.split == "train" else texts[:1]
    return [
        {"what": f"question {number} of {record['name']}", "text": text, "form": form, "shapes": shapes}
        for number, text in enumerate(asked)
    ]


def add_question(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    text = unmarked(statement["text"])
    drawn_HW = _painted(statement["shapes"], draft.height, draft.width)
    target = draft.tag(0, Rle.of(drawn_HW == _WANTED), file.label)
    ignored = Rle.of(drawn_HW == _IGNORED)
    if ignored.area and all(each.rle != ignored for each in draft.objects):
        draft.add_crowd(IGNORED, ignored, file.label)
    draft.references.append(Reference(statement["form"].format(text), target.name, [target], split, source))


def _painted(shapes: list[tuple[Any, Any]], height: int, width: int) -> np.ndarray:
    """HW uint8: background, wanted and ignored pixels."""
    outlines = [(_value(label), _outline(points, height, width)) for label, points in shapes if label.lower() != _DEPRECATED]
    masks = [(value, _filled(points, height, width)) for value, points in outlines]
    drawn_HW = np.full((height, width), _BACKGROUND, np.uint8)
    for value, mask_HW in sorted(reversed(masks), key=lambda each: -int(each[1].sum())):  # of two alike the first is on top
        drawn_HW[mask_HW] = value
    return drawn_HW


def _value(label: str) -> int:
    return _IGNORED if "ignore" in label.lower() else _WANTED


def _outline(points: Any, height: int, width: int) -> list[tuple[int, int]]:
    """Its corners as whole pixels of the picture, those outside moved to the border; none where all of it is outside."""
    xy = np.array(points, dtype=float)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise Unusable("mask", "an outline needs finite XY pairs")
    if (xy.max(axis=0) < 0).any() or (xy.min(axis=0) >= (width, height)).any():
        return []
    inside = np.clip(xy, 0, (width - 1, height - 1)).astype(int)
    return [(x, y) for x, y in inside.tolist()]


def _filled(outline: list[tuple[int, int]], height: int, width: int) -> np.ndarray:
    """HW bool."""
    canvas = Image.new("1", (width, height))
    if len(outline) > 1:
        ImageDraw.Draw(canvas).polygon(outline, fill=1, outline=1)
    else:
        ImageDraw.Draw(canvas).point(outline, fill=1)
    return np.array(canvas)
