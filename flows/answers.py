"""What is kept and shown of an answer of the student.

`NAME.json` holds everything: the words, the masks as COCO RLE at the picture's own size, the marks, and which checkpoint
spoke. `NAME.png` shows it: the masks in colours, numbered as their [SEG] are, and the marks in yellow.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from schemas.errors import ConfigError
from schemas.regions import Rle, VisualPrompt
from schemas.storage import Folder
from stages.report import drawing

if TYPE_CHECKING:
    from student.ask import Answer

COLOURS = (drawing.PREDICTION, *drawing.SERIES[3:], *drawing.SERIES[:2])  # without the yellow of the marks
SHOWN_SIDES = 640, 1600  # the least and the most pixels of the longer side of NAME.png


@dataclass(frozen=True)
class Writing:
    """How answers are written: at temperature 0 by the likeliest token each time, else by tokens drawn from the seed."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """A picture, HWC uint8 RGB and upright, the file that it is from, and what is asked about it and its marks."""

    image: str
    pixels_HWC: np.ndarray
    text: str
    prompts: Sequence[VisualPrompt]


@dataclass(frozen=True)
class Answered:
    """What was asked, what came of it, and from which checkpoint."""

    asked: Asked
    answer: "Answer"
    writing: Writing
    checkpoint: Mapping[str, Any]


def picture(answered: Answered) -> Image.Image:
    """The picture with its masks in colours and its marks on top, no smaller or larger than `SHOWN_SIDES`."""
    base, rles = Image.fromarray(answered.asked.pixels_HWC), answered.answer.masks
    least, most = SHOWN_SIDES
    shown = drawing.fitted(base, min(max(*base.size, least), most))
    for number in sorted(range(len(rles)), key=lambda n: -rles[n].area):
        shown = drawing.filled(shown, rles[number].mask(), colour_of(number))
    size = max(shown.width // 40, 14)
    for number, rle in enumerate(rles):
        if rle.area:
            drawing.badge(shown, str(number), _highest(rle.mask(), shown), colour_of(number), size)
    for prompt in answered.asked.prompts:
        shown = drawing.pointed(shown, prompt)
        drawing.badge(shown, prompt.text.strip("<>"), _beside(prompt, shown, size), drawing.PROMPT, size)
    return shown


def colour_of(number: int) -> drawing.Colour:
    return COLOURS[number % len(COLOURS)]


def _highest(mask_HW: np.ndarray, shown: Image.Image) -> tuple[float, float]:
    """XY on `shown` of the mask's first pixel: its number stands there, clear of the marks, which lie further in."""
    y, x = np.unravel_index(np.argmax(mask_HW), mask_HW.shape)
    return _on(shown, mask_HW, float(x), float(y))


def _on(shown: Image.Image, mask_HW: np.ndarray, x: float, y: float) -> tuple[float, float]:
    return (x + 0.5) * shown.width / mask_HW.shape[1], (y + 0.5) * shown.height / mask_HW.shape[0]


def _beside(prompt: VisualPrompt, shown: Image.Image, size: int) -> tuple[float, float]:
    """XY on `shown` of a mark's name, in letters of `size` pixels: over a point, on a box's corner, else in its middle."""
    mask_HW = prompt.rle.mask()
    ys, xs = np.nonzero(mask_HW)
    nearest = int(np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2))
    x, y = _on(shown, mask_HW, float(xs[nearest]), float(ys[nearest]))
    match prompt.kind:
        case "point":
            return x, y - 1.6 * size
        case "box":
            return _highest(mask_HW, shown)
        case _:
            return x, y


def as_json(answered: Answered) -> dict[str, Any]:
    asked, answer = answered.asked, answered.answer
    height, width, _ = asked.pixels_HWC.shape
    return {
        "image": asked.image,
        "width": width,
        "height": height,
        "question": asked.text,
        "prompts": [
            {"token": each.text, "kind": each.kind, "coordinates": list(each.coordinates), "rle": _coco(each.rle)}
            for each in asked.prompts
        ],
        "text": answer.text,
        "masks": [
            {"rle": _coco(rle), "area": rle.area, "box": list(rle.box), "score": round(score, 4)}
            for rle, score in zip(answer.masks, answer.scores, strict=True)
        ],
        "writing": asdict(answered.writing),
        "checkpoint": dict(answered.checkpoint),
    }


def _coco(rle: Rle) -> dict[str, Any]:
    return {"size": [rle.height, rle.width], "counts": rle.counts}


def as_text(answered: Answered) -> str:
    """The words, then a line for each mask."""
    return "\n".join([readable(answered.answer.text), *mask_lines(answered.answer)])


def mask_lines(answer: "Answer") -> list[str]:
    lines = []
    for number, (rle, score) in enumerate(zip(answer.masks, answer.scores, strict=True)):
        share = rle.area / (rle.width * rle.height)
        box = ",".join(f"{value:g}" for value in rle.box)
        lines.append(f"mask {number}: {rle.area} pixels ({share:.1%}), box {box}, score {score:.2f}")
    return lines


def readable(text: str) -> str:
    """With what a terminal would obey or hide, such as escapes, spelt out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text) or "(no words)"


def save(answered: Answered, out: str) -> list[str]:
    """Write NAME.png and NAME.json into the folder `out`; returns where they lie. A picture is never written over its own
    question's."""
    folder, sink = Folder(out), io.BytesIO()
    name = PurePosixPath(answered.asked.image).stem
    names = [f"{name}.png", f"{name}.json"]
    if Folder(answered.asked.image).path() in map(folder.path, names):
        raise ConfigError("the answer would be written over the picture", f"--out {out}", "Name another folder.")
    picture(answered).save(sink, "PNG")
    for name, data in zip(names, (sink.getvalue(), json.dumps(as_json(answered), indent=1).encode()), strict=True):
        folder.write(name, data)
    return [folder.child(name).url for name in names]
