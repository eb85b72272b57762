"""The kinds of shape as outlines, and how much of each pixel an outline covers.

Outlines are contours of points (x, y) with y down, about the origin, reaching about 1 from it. The first contour of a
kind is filled and any further one is cut out of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLE = 4


def _ring(points: int, radius: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """A regular polygon, its first point up when `turn` is 0."""
    angles = np.arange(points) * 2 * math.pi / points - math.pi / 2 + turn
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(points: int, outer: float, inner: float) -> np.ndarray:
    tips, notches = _ring(points, outer), _ring(points, inner, math.pi / points)
    return np.stack([tips, notches], axis=1).reshape(-1, 2)


def _cross(reach: float, half: float) -> np.ndarray:
    arm = np.array([[-half, -reach], [half, -reach], [half, -half]])
    turns = [np.array([[0, 1], [-1, 0]])] * 3
    arms = [arm]
    for turn in turns:
        arms.append(arms[-1] @ turn)
    return np.concatenate(arms)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 16, -(y + 2.5) / 15], axis=1)


OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (_ring(48),),
    "square": (_ring(4, 1.16, math.pi / 4),),
    "triangle": (_ring(3, 1.15) + np.array([0, 0.2]),),
    "star": (_star(5, 1.12, 0.5),),
    "ring": (_ring(48), _ring(48, 0.5)),
    "cross": (_cross(1.0, 0.33),),
    "diamond": (_ring(4, 1.1) * [0.72, 1],),
    "heart": (_heart(),),
}


@dataclass(frozen=True)
class Shape:
    """One shape: what it is called, and where its outline lies (pixels, radians) and in which RGB."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]

    def contours(self) -> list[np.ndarray]:
        """Its contours as points (x, y) in pixels; pixel (0, 0) spans 0..1."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        turn = self.radius * np.array([[cos, sin], [-sin, cos]])
        return [contour @ turn + [self.x, self.y] for contour in OUTLINES[self.kind]]

    def polygon(self) -> list[float]:
        """The outline as a flat COCO polygon; empty where it has a hole."""
        contours = self.contours()
        return contours[0].round(2).ravel().tolist() if len(contours) == 1 else []


class Patch(NamedTuple):
    """The part of a canvas that holds a shape: its rows and columns, and the values of its pixels there."""

    rows: slice
    columns: slice
    values: np.ndarray


def coverage(shape: Shape, side: int) -> Patch:
    """On a canvas of `side` x `side`, float32: the part of each pixel inside the outline, 0..1."""
    return _drawn(shape, side, _fill)


def rim(shape: Shape, side: int, width: float) -> Patch:
    """The same patch, float32: the part of each pixel within `width` pixels of the outline, on either side of it."""
    return _drawn(shape, side, lambda draw, contours: _stroke(draw, contours, width))


def _fill(draw: ImageDraw.ImageDraw, contours: list[np.ndarray]) -> None:
    for number, contour in enumerate(contours):
        draw.polygon(contour.ravel().tolist(), fill=0 if number else 255)


def _stroke(draw: ImageDraw.ImageDraw, contours: list[np.ndarray], width: float) -> None:
    for contour in contours:
        closed = np.concatenate([contour, contour[:2]])
        draw.line([(x, y) for x, y in closed.tolist()], fill=255, width=round(2 * width * SUPERSAMPLE), joint="curve")


def _drawn(shape: Shape, side: int, draw: Callable[[ImageDraw.ImageDraw, list[np.ndarray]], None]) -> Patch:
    """What `draw` paints of the contours, supersampled and averaged."""
    contours = shape.contours()
    columns, rows = (_span(contours[0][:, axis], side) for axis in (0, 1))
    patch = Image.new("L", (SUPERSAMPLE * (columns.stop - columns.start), SUPERSAMPLE * (rows.stop - rows.start)))
    origin = (columns.start, rows.start)
    draw(ImageDraw.Draw(patch), [(contour - origin) * SUPERSAMPLE - 0.5 for contour in contours])
    return Patch(rows, columns, np.asarray(patch.reduce(SUPERSAMPLE), np.float32) / 255)


def _span(values: np.ndarray, side: int) -> slice:
    """The pixels from the least of the values to the greatest, with two more on either side where there are any."""
    return slice(max(math.floor(values.min()) - 2, 0), min(math.ceil(values.max()) + 2, side))
