"""The pixels of a scene: textures, then each shape with a soft shadow, a little light from above and a darker rim."""

import math

import numpy as np
from PIL import Image, ImageFilter

from stages.sources.shapes.outlines import Patch, Shape, rim
from stages.sources.shapes.scene import Scene, Texture

SHADOW = 0.38
GRAIN = 2.0  # standard deviation of the sensor noise, in levels of 255


def paint(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """HWC uint8 RGB."""
    canvas_CHW = _backdrop(scene, rng)
    for shape, cover in zip(scene.shapes, scene.covers, strict=True):
        _cast_shadow(canvas_CHW, cover)
        _lay(canvas_CHW, shape, cover)
    pixels_HWC = (GRAIN * rng.standard_normal((scene.side, scene.side, 3))).astype(np.float32)
    pixels_HWC += canvas_CHW.transpose(1, 2, 0)
    return np.clip(np.rint(pixels_HWC, out=pixels_HWC), 0, 255, out=pixels_HWC).astype(np.uint8)


def _cast_shadow(canvas_CHW: np.ndarray, cover: Patch) -> None:
    """Darken the canvas by the shape's cover, blurred and moved a little down and right."""
    side = canvas_CHW.shape[-1]
    reach = round(0.018 * side)
    room = 4 * reach  # further than the blur carries
    top, left = max(cover.rows.start - room, 0), max(cover.columns.start - room, 0)
    bottom, right = min(cover.rows.stop + room, side), min(cover.columns.stop + room, side)
    sharp = np.zeros((bottom - top, right - left), np.uint8)
    sharp[_from(cover.rows, top), _from(cover.columns, left)] = 255 * cover.values
    soft = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(reach)), np.float32) / 255
    shaded = canvas_CHW[:, top + reach : bottom + reach, left + reach : right + reach]
    shaded *= 1 - SHADOW * soft[: shaded.shape[1], : shaded.shape[2]]


def _from(span: slice, origin: int) -> slice:
    return slice(span.start - origin, span.stop - origin)


def _lay(canvas_CHW: np.ndarray, shape: Shape, cover: Patch) -> None:
    side = canvas_CHW.shape[-1]
    part_CHW = canvas_CHW[:, cover.rows, cover.columns]
    rows = np.arange(cover.rows.start, cover.rows.stop, dtype=np.float32)
    light = (shape.y - rows) / shape.radius  # 1 at the top of the shape, -1 below
    shade_HW = 1 + 0.1 * np.clip(light, -1, 1)[:, None] - 0.3 * rim(shape, side, width=0.011 * side).values
    fill_CHW = np.minimum(np.array(shape.rgb, np.float32)[:, None, None] * shade_HW, 255)
    part_CHW += cover.values * (fill_CHW - part_CHW)


def _backdrop(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """CHW float32."""
    grounds = [_ground(texture, scene.side, rng) for texture in scene.textures]
    return grounds[0] if len(grounds) == 1 else np.where(scene.ground_HW == 0, *grounds)


def _ground(texture: Texture, side: int, rng: np.random.Generator) -> np.ndarray:
    first_C11, second_C11 = np.array(texture.colours, np.float32)[..., None, None]
    return first_C11 + _pattern(texture, side, rng) * (second_C11 - first_C11)


def _pattern(texture: Texture, side: int, rng: np.random.Generator) -> np.ndarray:
    """HW float32 in 0..1: how far each pixel is from the texture's first colour to its second."""
    if texture.name == "clouds":
        return _clouds(side, texture.period, rng)
    x = np.arange(side, dtype=np.float32)
    y = x[:, None]
    along = x * math.cos(texture.angle) + y * math.sin(texture.angle)
    across = y * math.cos(texture.angle) - x * math.sin(texture.angle)
    if texture.name == "gradient":
        return (along - along.min()) / (along.max() - along.min())
    u, v = (2 * math.pi / texture.period * axis for axis in (along, across))
    match texture.name:
        case "stripes":
            return _crisp(np.sin(u))
        case "checks":
            return _crisp(np.sin(u / 2) * np.sin(v / 2) * 2)
        case _:
            return _crisp(np.cos(u) + np.cos(v) - 1)


def _crisp(wave: np.ndarray) -> np.ndarray:
    """The sign of the wave as 0 or 1, with an edge of about a pixel."""
    return np.clip(2.5 * wave + 0.5, 0, 1)


def _clouds(side: int, period: float, rng: np.random.Generator) -> np.ndarray:
    cells = max(3, round(side / period / 2))
    coarse = Image.fromarray(rng.random((cells, cells), np.float32))
    return np.clip(np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)), 0, 1)
