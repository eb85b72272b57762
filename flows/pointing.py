"""What somebody points at, by numbers on the command line or by hand on the page -> visual prompts.

The n-th mark is <Promptn>. Coordinates are pixels of the upright picture, x before y: a point lies in a pixel, a box is
XYXY with its upper bounds left out, a scribble is the vertices of a stroke, a mask a file or the corners of an outline.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from schemas.dialogue import prompt_token
from schemas.errors import ConfigError, DataError
from schemas.marks import Pen
from schemas.pictures import decode
from schemas.regions import PromptKind, Rle, VisualPrompt, box_mask

FORMS: dict[PromptKind, str] = {"point": "x,y", "box": "x0,y0,x1,y1", "scribble": "x,y,x,y,...", "mask": "x,y,x,y,x,y,..."}
LEAST: dict[PromptKind, int] = {"point": 2, "box": 4, "scribble": 4, "mask": 6}
HALF_BRIGHT = 128


def numbers(option: str, text: str) -> list[float]:
    """The numbers of `--point 120,80` and its like."""
    try:
        return [float(each) for each in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r} are no numbers with commas between", option, "Write --point 120,80.") from None


def drawn(number: int, kind: PromptKind, xy: Sequence[float], size: tuple[int, int]) -> VisualPrompt:
    """Mark `number` from its coordinates; size is the picture's (height, width). DataError where it is not within it."""
    where = f"{kind} {','.join(f'{value:g}' for value in xy)}"
    fixed = kind in ("point", "box")
    if len(xy) < LEAST[kind] or len(xy) % 2 or (fixed and len(xy) > LEAST[kind]):
        raise ConfigError(f"{len(xy)} numbers, a {kind} is {FORMS[kind]}", where, "Give its pixels, x before y.")
    _check_within(kind, xy, size, where)
    mask = _pixels(kind, xy, size)
    if not mask.any():
        raise DataError("it holds no pixel", where, "A box is x0,y0,x1,y1, from its upper left to its lower right corner.")
    return VisualPrompt(number, kind, [] if kind == "mask" else list(xy), Rle.of(mask), prompt_token(number))


def loaded(number: int, data: bytes, where: str, size: tuple[int, int]) -> VisualPrompt:
    """Mark `number` from the bytes of a picture, white where it marks; DataError says what is wrong with it."""
    try:
        pixels_HWC = decode(data)
    except DataError as error:
        raise DataError(error.what, where, "A mask is a picture, white where it marks and black elsewhere.") from None
    with Image.open(io.BytesIO(data)) as image:
        if image.has_transparency_data:
            raise DataError("a mask with transparency", where, "Save it without, white where it marks and black elsewhere.")
    if pixels_HWC.shape[:2] != size:
        (height, width), (high, wide) = pixels_HWC.shape[:2], size
        raise DataError(f"a mask of {width} x {height} on a picture of {wide} x {high}", where, "Make them of one size.")
    mask = pixels_HWC.max(axis=-1) >= HALF_BRIGHT
    if not mask.any():
        raise DataError("the mask is empty", where, "It is white where it marks; grey counts from half bright on.")
    return VisualPrompt(number, "mask", [], Rle.of(mask), prompt_token(number))


def _check_within(kind: PromptKind, xy: Sequence[float], size: tuple[int, int], where: str) -> None:
    """A box may end at the picture's edge; everything else lies in a pixel."""
    height, width = size
    end = 0 if kind == "box" else 1
    inside = all(0 <= x <= width - end for x in xy[::2]) and all(0 <= y <= height - end for y in xy[1::2])
    if not inside:
        raise DataError(f"outside the picture of {width} x {height}", where, "Coordinates are pixels of the upright picture.")


def _pixels(kind: PromptKind, xy: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """bool HW"""
    if kind == "point":
        x, y = (int(value) for value in xy)
        return box_mask((x, y, x + 1, y + 1), *size)
    if kind == "box":
        return box_mask(xy, *size)
    height, width = size
    canvas = Image.new("1", (width, height))
    pen = ImageDraw.Draw(canvas)
    if kind == "mask":
        pen.polygon(list(xy), fill=1, outline=1)
    else:
        pen.line(list(xy), fill=1, width=Pen().scribble_width, joint="curve")
        pen.point(list(xy), fill=1)
    return np.asarray(canvas)
