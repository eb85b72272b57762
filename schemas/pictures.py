"""Bytes of a picture file -> upright RGB pixels, and the key that names a picture by them.

Every file becomes pixels in one way, so that a picture has one key whatever holds it:

- the first frame, turned upright by its EXIF orientation;
- what is transparent shows white; palette, grey, CMYK and other colour models become RGB, without colour profiles;
- 16-bit grey is scaled to 8 bits and rounded; of 16-bit colour Pillow keeps the upper byte;
- pixels without a defined white (floats, 32-bit integers) are refused.
"""

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from schemas.errors import BrokenArtifact, DataError

# Formats whose decoders run in this process; Pillow would start Ghostscript for others.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 1 << 26
# What Pillow's decoders are known to raise on damaged bytes.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, ArithmeticError, struct.error, zlib.error)


def sound_bytes(image: Mapping[str, Any]) -> bytes:
    """The `bytes` of a row of IMAGES, to be decoded; `BrokenArtifact` where they do not give its `sha256`. What the store has
    damaged may still be decoded, and what is made from it would be stored as sound. Rows that no pool has made may have an
    empty `sha256`, which says nothing."""
    data, told = image["bytes"], image["sha256"]
    if told and hashlib.sha256(data).hexdigest() != told:
        what = "its bytes are not those that were stored: they do not give their sha256"
        remedy = "`sailyard verify` names the file that is damaged: delete that and run again."
        raise BrokenArtifact(what, f"images, picture {image['image_key']}", remedy)
    return data


def decode(data: bytes, max_pixels: int | None = None) -> np.ndarray:
    """The pixels of an encoded picture, HWC uint8 RGB, upright; `DataError` says what is wrong with it."""
    return examine(data, max_pixels)[1]


def examine(data: bytes, max_pixels: int | None = None) -> tuple[str, np.ndarray]:
    """The name of the format and the pixels; `max_pixels` is held against the header, before anything is decoded."""
    if not data:
        raise DataError("the file is empty")
    _quieten_pillow()
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse_bomb(image, max_pixels)
            form = image.format or ""
            return form, _rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError:
        raise DataError(f"not a picture of a known format ({', '.join(FORMATS)}), or its header is damaged") from None
    except Image.DecompressionBombError as error:
        raise DataError(str(error)) from None
    except _DAMAGE as error:
        raise DataError(f"the picture cannot be decoded: {error or type(error).__name__}") from None


def image_key(pixels_HWC: np.ndarray) -> str:
    """32 hex digits over the size and the pixels of an upright picture."""
    height, width, _ = pixels_HWC.shape
    digest = hashlib.sha256(b"%dx%d" % (width, height))
    digest.update(np.ascontiguousarray(pixels_HWC).data)
    return digest.hexdigest()[:32]


def failed_key(name: str, data: bytes) -> str:
    """The key of a file that cannot be decoded: `x`, then 31 hex digits over its name and bytes."""
    return "x" + hashlib.sha256(name.encode() + data).hexdigest()[:31]


def _refuse_bomb(image: Image.Image, max_pixels: int | None) -> None:
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise DataError(f"a picture of {image.width} x {image.height} has more than {max_pixels} pixels")


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise DataError("its pixels are floats, for which no value is white")
    if image.mode.startswith("I"):
        return _from_deep_grey(np.asarray(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _from_deep_grey(grey_HW: np.ndarray) -> np.ndarray:
    if grey_HW.min() < 0 or grey_HW.max() > 65535:
        raise DataError("its pixels are 32-bit integers, for which no value is white")
    scaled_HW = ((grey_HW.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(scaled_HW[..., None], 3, axis=2)


def _quieten_pillow() -> None:
    """Pillow's warnings about odd files say nothing that the pixels or an error do not."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
