"""ReasonSeg, as LISA publishes it: a folder with a JSON beside each JPEG, its outlines and what is asked for.

Outlines are drawn as there: border and inside, the largest first, so that a smaller one stands on a larger. What is neither
target nor to be ignored is background. What is to be ignored is void: background to learn from, and no part of a score. A
target may be empty: then nothing is to be found. To be evaluated, a record asks its first question alone.
"""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from schemas.annotations import Reference
from schemas.errors import ConfigError, DataError
from schemas.regions import VOID, Level, Rle
from schemas.storage import Folder
from stages.phrases import REASON, REASON_WHAT
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable, split_of, unmarked

_DEPRECATED = "flag"  # a label without a meaning
_BACKGROUND, _WANTED, _IGNORED = 0, 1, 2
_FAR = 100  # sides of a picture


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
        except (ValueError, RecursionError) as error:
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
        {"what": f"question {number} of {record['name']}", "name": record["name"], "text": text, "form": form, "shapes": shapes}
        for number, text in enumerate(asked)
    ]


def question_adder() -> Callable[[Draft, SourceFile, Statement], None]:
    """A function that adds questions; it draws the outlines of a record once."""
    return functools.partial(_add_question, {})


def _add_question(drawn: dict[str, tuple[Rle, Rle]], draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    text, name = unmarked(statement["text"]), statement["name"]
    if name not in drawn:
        painted_HW = _painted(statement["shapes"], draft.height, draft.width)
        drawn[name] = Rle.of(painted_HW == _WANTED), Rle.of(painted_HW == _IGNORED)
    wanted, ignored = drawn[name]
    target = draft.tag(0, wanted, file.label, [Level(VOID, ignored)] if ignored.area else [])
    draft.references.append(Reference(statement["form"].format(text), target.name, [target], split, source))


def _painted(shapes: list[tuple[Any, Any]], height: int, width: int) -> np.ndarray:
    """HW uint8: background, wanted and ignored pixels."""
    outlines = [(_value(label), _outline(points, height, width)) for label, points in shapes if label.lower() != _DEPRECATED]
    sized = [(_area(outline, height, width), value, outline) for value, outline in outlines]
    canvas = Image.new("L", (width, height), _BACKGROUND)
    for _, value, outline in sorted(reversed(sized), key=lambda each: -each[0]):  # of two alike the first is on top
        _draw(canvas, outline, value)
    return np.array(canvas)


def _value(label: str) -> int:
    return _IGNORED if "ignore" in label.lower() else _WANTED


def _outline(points: Any, height: int, width: int) -> list[tuple[int, int]]:
    """Its corners as whole pixels. Those outside stay where they are, for its edges lead there; one very far out is brought
    nearer, so that an edge is drawn in finite time."""
    xy = np.array(points, dtype=float)
    if xy.ndim != 2 or xy.shape[1] != 2 or not np.isfinite(xy).all():
        raise Unusable("mask", "an outline needs finite XY pairs")
    far = _FAR * max(height, width)
    return [(x, y) for x, y in np.clip(xy, -far, far).astype(int).tolist()]


def _area(outline: list[tuple[int, int]], height: int, width: int) -> int:
    canvas = Image.new("L", (width, height))
    _draw(canvas, outline, 1)
    return canvas.histogram()[1]


def _draw(canvas: Image.Image, outline: list[tuple[int, int]], value: int) -> None:
    if len(outline) > 1:
        ImageDraw.Draw(canvas).polygon(outline, fill=value, outline=value)
    else:
        ImageDraw.Draw(canvas).point(outline, fill=value)
