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

import numpy as np
from PIL import Image, ImageOps

from schemas.errors import DataError

# Formats whose decoders run in this process; Pillow would start Ghostscript for others.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 1 << 26
# What Pillow's decoders are known to raise on damaged bytes.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, ArithmeticError, struct.error, zlib.error)


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
