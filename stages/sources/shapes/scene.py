"""What is in a scene: shapes back to front over one or two stuff textures, and which pixel belongs to which.

A scene is a pure function of its generator. It is drawn shape by shape, and a place is refused if it would leave any
shape with less than half of its pixels in sight, so that every name in the scene can be read off the picture.
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from schemas.errors import DataError
from schemas.regions import Rle
from stages.sources.shapes.outlines import OUTLINES, Patch, Shape, coverage

KINDS = tuple(OUTLINES)
HUES = {  # name: hue in degrees, saturation, value
    "red": (356, 0.86, 0.84),
    "orange": (26, 0.93, 0.98),
    "yellow": (51, 0.88, 0.99),
    "green": (130, 0.72, 0.62),
    "cyan": (184, 0.68, 0.88),
    "blue": (221, 0.82, 0.82),
    "purple": (277, 0.66, 0.62),
    "pink": (334, 0.45, 0.99),
}
COLOURS = tuple(HUES)
RADII = {"small": (0.095, 0.11), "large": (0.185, 0.215)}  # of the picture's side
SIZES = tuple(RADII)
TEXTURES = ("gradient", "clouds", "stripes", "checks", "dots")

LEAST_VISIBLE = 0.5
LEAST_AREA = 60 / 128**2  # of the picture
REPEAT = 0.15  # how often a shape takes its kind, or its colour, from one that is there
TWO_TEXTURES = 0.4
TRIES = 30
INSIDE = 0.5  # a pixel belongs to a shape that covers this part of it
NOBODY = np.int8(-1)


@dataclass(frozen=True)
class Texture:
    """A stuff region: which pattern, in which two RGB colours, turned and repeated how (radians, pixels)."""

    name: str
    colours: tuple[tuple[float, ...], tuple[float, ...]]
    angle: float
    period: float


@dataclass(frozen=True)
class Region:
    """The visible pixels of a shape or a texture: as bool HW, how many there are, the least box around them (x, y, width,
    height) and their mean (x, y)."""

    mask_HW: np.ndarray
    area: int
    box: tuple[int, int, int, int]
    centre: tuple[float, float]

    @classmethod
    def of(cls, mask_HW: np.ndarray) -> "Region":
        (left, width, x), (top, height, y) = (_extent(mask_HW.sum(axis=axis)) for axis in (0, 1))
        return cls(mask_HW, int(mask_HW.sum()), (left, top, width, height), (x, y))


def _extent(counts: np.ndarray) -> tuple[int, int, float]:
    """Of pixels counted by column or by row: where they begin, how far they reach, and their mean."""
    places = np.flatnonzero(counts)
    first, last = int(places[0]), int(places[-1])
    return first, last + 1 - first, float(counts @ np.arange(len(counts)) / counts.sum()) + 0.5


@dataclass(frozen=True, eq=False)
class Scene:
    """Shapes and textures of a picture of `side` x `side` pixels, with the ground truth at its final resolution.

    `labels_HW` holds 0 .. n-1 for the n shapes and n, n+1 for the textures, `ground_HW` the texture under each pixel.
    `covers` are the shapes as they would lie there alone, anti-aliased; `regions` what is seen of each label; `hidden` says
    of each shape whether another covers part of it.
    """

    side: int
    shapes: tuple[Shape, ...]
    textures: tuple[Texture, ...]
    labels_HW: np.ndarray
    ground_HW: np.ndarray
    covers: tuple[Patch, ...]
    regions: tuple[Region, ...]
    hidden: tuple[bool, ...]

    @property
    def numbers(self) -> range:
        """The labels of the shapes."""
        return range(len(self.shapes))


def compose(rng: np.random.Generator, *, side: int, objects: tuple[int, int]) -> Scene:
    """A scene of `objects[0]` to `objects[1]` shapes; no two agree in kind, colour and size at once."""
    textures, ground_HW = _ground(rng, side)
    count = int(rng.integers(objects[0], objects[1] + 1))
    for _ in range(TRIES):
        stack = _arrange(rng, side, count)
        if len(stack.shapes) == count:
            return _assemble(stack, textures, ground_HW)
    raise DataError(f"{count} shapes did not fit", f"a scene of {side} x {side} pixels", "Ask for fewer objects.")


def _assemble(stack: "_Stack", textures: tuple[Texture, ...], ground_HW: np.ndarray) -> Scene:
    count, side = len(stack.shapes), len(ground_HW)
    labels_HW = (ground_HW + count).astype(np.uint8)
    masks = [_alone(shape, cover, side) for shape, cover in zip(stack.shapes, stack.covers, strict=True)]
    for number, mask_HW in enumerate(masks):
        labels_HW[mask_HW] = number
    regions = tuple(Region.of(labels_HW == label) for label in range(count + len(textures)))
    return Scene(
        side=side,
        shapes=tuple(stack.shapes),
        textures=textures,
        labels_HW=labels_HW,
        ground_HW=ground_HW,
        covers=tuple(stack.covers),
        regions=regions,
        hidden=tuple(region.area < int(mask_HW.sum()) for region, mask_HW in zip(regions, masks, strict=False)),
    )


def _alone(shape: Shape, cover: Patch, side: int) -> np.ndarray:
    """bool HW: the shape's mask, were it alone: what COCO's readers make of its polygon, so that all formats tell the same
    mask, or where it has a hole and so is no polygon, the pixels that it covers by half."""
    polygon = shape.polygon()
    if polygon:
        return Rle.from_coco([polygon], side, side).mask()
    mask_HW = np.zeros((side, side), bool)
    mask_HW[cover.rows, cover.columns] = cover.values >= INSIDE
    return mask_HW


class _Stack:
    """Shapes laid on each other so far, the number of the one that owns each pixel, and how many pixels each owns of those
    that it would own alone."""

    def __init__(self, side: int):
        self.shapes: list[Shape] = []
        self.covers: list[Patch] = []
        self.owner_HW = np.full((side, side), NOBODY)
        self.alone = np.zeros(0, int)
        self.owned = np.zeros(0, int)

    def lay(self, shape: Shape) -> bool:
        """Lay the shape on top, unless too little would be left in sight of any."""
        cover = coverage(shape, len(self.owner_HW))
        below, inside = self.owner_HW[cover.rows, cover.columns], cover.values >= INSIDE
        area = np.count_nonzero(inside)
        lost = np.bincount(below[inside] + 1, minlength=len(self.shapes) + 1)[1:]
        owned, alone = np.append(self.owned - lost, area), np.append(self.alone, area)
        if (owned < np.maximum(LEAST_VISIBLE * alone, LEAST_AREA * self.owner_HW.size)).any():
            return False
        below[inside] = len(self.shapes)
        self.owned, self.alone = owned, alone
        self.shapes.append(shape)
        self.covers.append(cover)
        return True


def _arrange(rng: np.random.Generator, side: int, count: int) -> _Stack:
    """Up to `count` shapes back to front; fewer where a place was not found."""
    stack = _Stack(side)
    for _ in range(count):
        kind, colour, size = _attributes(rng, stack.shapes)
        any(stack.lay(_placed(rng, side, kind=kind, colour=colour, size=size)) for _ in range(TRIES))
    return stack


def _attributes(rng: np.random.Generator, shapes: list[Shape]) -> tuple[str, str, str]:
    taken = {(shape.kind, shape.colour, shape.size) for shape in shapes}
    while True:
        kind, colour, size = (names[rng.integers(len(names))] for names in (KINDS, COLOURS, SIZES))
        if shapes and rng.random() < REPEAT:
            kind = shapes[rng.integers(len(shapes))].kind
        if shapes and rng.random() < REPEAT:
            colour = shapes[rng.integers(len(shapes))].colour
        if (kind, colour, size) not in taken:
            return kind, colour, size


def _placed(rng: np.random.Generator, side: int, *, kind: str, colour: str, size: str) -> Shape:
    radius = side * rng.uniform(*RADII[size])
    x, y = rng.uniform(1.1 * radius, side - 1.1 * radius, 2)
    drift = zip(HUES[colour], rng.uniform(-1, 1, 3).tolist(), (5, 0.05, 0.05), strict=True)
    hue, saturation, value = (usual + turn * most for usual, turn, most in drift)
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, min(saturation, 1), min(value, 1))
    rgb = (round(255 * red), round(255 * green), round(255 * blue))
    angle = math.radians(rng.uniform(-14, 14))
    return Shape(kind, colour, size, x=float(x), y=float(y), radius=float(radius), angle=angle, rgb=rgb)


def _ground(rng: np.random.Generator, side: int) -> tuple[tuple[Texture, ...], np.ndarray]:
    """One texture or two different ones, and HW the number of the texture at each pixel."""
    count = 1 + int(rng.random() < TWO_TEXTURES)
    names = rng.choice(TEXTURES, count, replace=False)
    textures = tuple(_texture(rng, str(name), side) for name in names)
    angle, height = math.radians(rng.uniform(-15, 15)), rng.uniform(0.35, 0.65) * side
    middles = np.arange(side) + 0.5
    below_HW = ((middles - height) * math.cos(angle))[:, None] > (middles - side / 2) * math.sin(angle)
    return textures, below_HW.astype(np.int8) * (count - 1)


def _texture(rng: np.random.Generator, name: str, side: int) -> Texture:
    """Two muted neighbours in colour, so that no part of the ground passes for a shape."""
    hue, saturation, value = rng.random(), rng.uniform(0.05, 0.22), rng.uniform(0.5, 0.92)
    levels = value, value - rng.uniform(0.1, 0.2)
    first, second = (tuple(255 * part for part in colorsys.hsv_to_rgb(hue, saturation, level)) for level in levels)
    return Texture(name, (first, second), angle=rng.uniform(0, math.pi), period=side * rng.uniform(0.07, 0.14))
