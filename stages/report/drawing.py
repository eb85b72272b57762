"""Masks, prompts and feature maps drawn onto pictures. Nothing here knows of artifacts or of the page.

Pictures are PIL RGB at the size they are shown; masks are bool HW at any size and are brought to the picture's.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from schemas.regions import VisualPrompt

Colour = tuple[int, int, int]

TARGET: Colour = (38, 214, 120)
PREDICTION: Colour = (236, 50, 168)
PROMPT: Colour = (255, 200, 20)
CASING: Colour = (16, 18, 24)
GROUND: Colour = (128, 132, 140)
SERIES: tuple[Colour, ...] = (  # neighbours differ in hue and lightness both
    (230, 75, 53), (77, 187, 213), (245, 192, 66), (60, 84, 136), (120, 200, 120), (190, 110, 200),
    (240, 150, 110), (0, 140, 125), (145, 209, 194), (165, 90, 60), (132, 145, 180), (220, 220, 120),
)  # fmt: skip
FIT_POINTS = 20_000


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at `side` pixels."""
    scale = side / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    return image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)


def blank(width: int, height: int) -> Image.Image:
    """What stands for a picture that is not at hand."""
    return Image.new("RGB", (width, height), GROUND)


def _sized(mask_HW: np.ndarray, picture: Image.Image) -> np.ndarray:
    """The mask at twice the picture's size, its steps smoothed where it is enlarged."""
    size = 2 * picture.width, 2 * picture.height
    grey = Image.fromarray(mask_HW.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    scale = size[0] / mask_HW.shape[1]
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(scale / 2)) if scale > 1 else grey) >= 128


def _grown(mask_HW: np.ndarray, by: int) -> np.ndarray:
    """The mask and what is within `by` pixels of it: a blur is at a fortieth, two deviations, that far from an edge."""
    grey = Image.fromarray(mask_HW.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(by / 2))
    return np.asarray(grey) > 255 // 40


def _tinted(picture: Image.Image, where_HW: np.ndarray, colour: Colour, share: float = 1.0) -> Image.Image:
    """`colour` laid over the picture where `where_HW`, of twice its size, is true: edges come out smooth."""
    alpha = Image.fromarray((where_HW * (255 * share)).round().astype(np.uint8)).reduce(2)
    return Image.composite(Image.new("RGB", picture.size, colour), picture, alpha)


def filled(picture: Image.Image, mask_HW: np.ndarray, colour: Colour, share: float = 0.5) -> Image.Image:
    """The mask as a translucent area, with a thin rim of its own colour."""
    mask = _sized(mask_HW, picture)
    return _tinted(_tinted(picture, mask, colour, share), mask & _grown(~mask, 2), colour)


def hatched(picture: Image.Image, mask_HW: np.ndarray, colour: Colour) -> Image.Image:
    """The mask under diagonal stripes of `colour`: it shows on any ground, its own colour among them."""
    mask = _sized(mask_HW, picture)
    y, x = np.indices(mask.shape)
    stripe = (x + y) * 64 // max(mask.shape) % 2 == 0
    drawn = _tinted(_tinted(picture, mask, colour, 0.3), mask & stripe, colour, 0.7)
    return _tinted(drawn, mask & _grown(~mask, 4), colour)


def outlined(picture: Image.Image, mask_HW: np.ndarray, colour: Colour, width: int = 7) -> Image.Image:
    """The mask's outline, `width` half pixels, in a dark casing that shows on any ground; the inside is left as it is."""
    mask = _sized(mask_HW, picture)
    line = _grown(mask, width) & ~mask
    return _tinted(_tinted(picture, _grown(line, 2) & ~line, CASING, 0.85), line, colour)


def marked(picture: Image.Image, mask_HW: np.ndarray, label: str, colour: Colour = PROMPT) -> Image.Image:
    """A region that is pointed at: lightly filled, outlined, and labelled at its middle."""
    drawn = outlined(filled(picture, mask_HW, colour, 0.25), mask_HW, colour, 5)
    ys, xs = np.nonzero(mask_HW)
    if label and len(xs):
        nearest = np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2)  # inside the mask even where it is hollow
        scale = np.array(picture.size) / (mask_HW.shape[1], mask_HW.shape[0])
        x, y = (np.array((xs[nearest], ys[nearest])) + 0.5) * scale
        badge(drawn, label, (float(x), float(y)), colour, max(drawn.width // 16, 11))
    return drawn


def badge(picture: Image.Image, label: str, at: tuple[float, float], colour: Colour, size: int) -> None:
    """A disc or pill with a word in letters of `size` pixels, drawn centred at XY and kept inside the picture."""
    font, (x, y) = ImageFont.load_default(size=size), at
    pen = ImageDraw.Draw(picture)
    wide, high = pen.textlength(label, font=font) + size * 0.7, size * 1.35
    wide = max(wide, high)
    x = min(max(x, wide / 2 + 1), picture.width - wide / 2 - 2)
    y = min(max(y, high / 2 + 1), picture.height - high / 2 - 2)
    box = (x - wide / 2, y - high / 2, x + wide / 2, y + high / 2)
    pen.rounded_rectangle(box, radius=high / 2, fill=colour, outline=CASING)
    dark = sum(colour) > 330
    pen.text((x, y), label, font=font, fill=CASING if dark else (255, 255, 255), anchor="mm")


def pointed(picture: Image.Image, prompt: VisualPrompt, colour: Colour = PROMPT) -> Image.Image:
    """A visual prompt as a hand would make it: a dot, a box, a stroke; a mask as a hatched region."""
    if prompt.kind == "mask":
        return hatched(picture, prompt.rle.mask(), colour)
    drawn, scale = picture.copy(), picture.width / prompt.rle.width
    pen, width = ImageDraw.Draw(drawn), max(picture.width // 90, 2)
    xy = [(float(value) + (0.5 if prompt.kind == "point" else 0.0)) * scale for value in prompt.coordinates]
    match prompt.kind:
        case "point":
            for radius, fill in ((3 * width, CASING), (3 * width - 2, (255, 255, 255)), (2 * width, colour)):
                pen.ellipse((xy[0] - radius, xy[1] - radius, xy[0] + radius, xy[1] + radius), fill=fill)
        case "box":
            pen.rectangle(xy, outline=CASING, width=width + 2)
            pen.rectangle([xy[0] + 1, xy[1] + 1, xy[2] - 1, xy[3] - 1], outline=colour, width=width)
        case "scribble":
            for thick, fill in ((width + 4, CASING), (width + 1, colour)):
                pen.line(xy, fill=fill, width=thick, joint="curve")
    return drawn


@dataclass(frozen=True)
class Palette:
    """Three principal axes of a teacher's channels, with the range of each that becomes 0..255 of R, G and B."""

    mean_C: np.ndarray
    axes_C3: np.ndarray
    low_3: np.ndarray
    high_3: np.ndarray
    explained: float

    @classmethod
    def of(cls, maps: Sequence[np.ndarray]) -> "Palette":
        """Fitted to maps (channels, height, width) of several pictures together, so that a colour means one thing."""
        points_nC = np.concatenate([feature.reshape(len(feature), -1).T for feature in maps]).astype(np.float64)
        points_nC = points_nC[:: -(-len(points_nC) // FIT_POINTS)]
        mean_C = points_nC.mean(axis=0)
        values_C, vectors_CC = np.linalg.eigh(np.cov(points_nC - mean_C, rowvar=False).reshape(len(mean_C), -1))
        axes_C3 = np.zeros((len(mean_C), 3))
        count = min(3, len(mean_C))
        axes_C3[:, :count] = vectors_CC[:, ::-1][:, :count]
        axes_C3 *= np.where(axes_C3[np.abs(axes_C3).argmax(axis=0), range(3)] < 0, -1, 1)  # eigh leaves the sign open
        low_3, high_3 = np.percentile((points_nC - mean_C) @ axes_C3, (1, 99), axis=0)
        return cls(mean_C, axes_C3, low_3, high_3, float(values_C[-3:].sum() / max(values_C.sum(), 1e-30)))

    def paint(self, feature_CHW: np.ndarray, size: tuple[int, int]) -> Image.Image:
        """The map at (width, height), its cells left as squares."""
        flat_n3 = (feature_CHW.reshape(len(feature_CHW), -1).T - self.mean_C) @ self.axes_C3
        unit_n3 = (flat_n3 - self.low_3) / np.maximum(self.high_3 - self.low_3, 1e-12)
        pixels = (unit_n3.clip(0, 1) * 255).round().astype(np.uint8).reshape(*feature_CHW.shape[1:], 3)
        return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def data_uri(picture: Image.Image, quality: int = 82) -> str:
    """The picture as a WebP `data:` URI."""
    sink = io.BytesIO()
    picture.save(sink, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode("ascii")


def wrapped(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, lines: int) -> list[str]:
    """`text` broken into at most `lines` lines of `width` pixels; what is cut off is marked by dots."""
    done: list[str] = []
    for word in text.split():
        longer = f"{done[-1]} {word}" if done else word
        if done and font.getlength(longer) <= width:
            done[-1] = longer
        else:
            done.append(word)
    kept = done[:lines]
    if len(done) > lines:
        kept[-1] += " ..."
    for number, line in enumerate(kept):
        while font.getlength(line) > width and len(line) > 2:
            line = line.rstrip(".")[:-1] + "..."
        kept[number] = line
    return kept
