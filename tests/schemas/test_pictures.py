import io
import warnings

import numpy as np
import pytest
from PIL import Image

from schemas.errors import DataError
from schemas.pictures import decode, examine, failed_key, image_key

ORIENTATION = 0x0112
TURNS = {1: lambda p: p, 3: lambda p: p[::-1, ::-1], 6: lambda p: np.rot90(p, -1), 8: lambda p: np.rot90(p)}


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.fixture
def pixels_HWC(rng: np.random.Generator) -> np.ndarray:
    """Larger than a decoder's buffer, so that a cut shows."""
    return rng.integers(0, 256, (48, 72, 3), dtype=np.uint8)


@pytest.fixture
def picture(pixels_HWC: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels_HWC)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_containers_give_back_the_pixels_and_one_key(form: str, picture: Image.Image, pixels_HWC: np.ndarray):
    found, decoded_HWC = examine(encoded(picture, form))
    assert found == form
    np.testing.assert_array_equal(decoded_HWC, pixels_HWC)
    assert image_key(decoded_HWC) == image_key(pixels_HWC)
    assert len(image_key(decoded_HWC)) == 32


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_exif_orientation_is_carried_out(orientation: int, form: str, picture: Image.Image, pixels_HWC: np.ndarray):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    np.testing.assert_array_equal(decode(encoded(picture, form, exif=exif)), TURNS[orientation](pixels_HWC))


def test_a_key_tells_sizes_and_turns_apart(pixels_HWC: np.ndarray):
    flat = pixels_HWC.reshape(24, 144, 3)
    assert len({image_key(pixels_HWC), image_key(flat), image_key(np.rot90(pixels_HWC, 2))}) == 3


def test_sixteen_bits_are_scaled_and_not_clipped():
    grey = np.array([[0, 128, 257, 32768, 65407, 65535]], dtype=np.uint16)
    scaled = decode(encoded(Image.fromarray(grey), "PNG"))[0, :, 0]
    assert scaled.tolist() == [0, 0, 1, 128, 255, 255]
    assert decode(encoded(Image.fromarray(grey.astype(np.int32)), "TIFF"))[0, :, 0].tolist() == scaled.tolist()


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_white_are_refused(mode: str):
    data = encoded(Image.fromarray(np.array([[0, 70_000]], dtype={"F": np.float32, "I": np.int32}[mode])), "TIFF")
    with pytest.raises(DataError, match="no value is white"):
        decode(data)


def test_cmyk_jpeg_becomes_rgb():
    cyan_HWC = decode(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG"))
    assert cyan_HWC.shape == (16, 16, 3)
    assert np.abs(cyan_HWC.astype(int) - (0, 255, 255)).max() < 6


def test_transparency_shows_white():
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert decode(encoded(clear, "PNG")).tolist() == np.full((4, 4, 3), 255).tolist()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode(encoded(palette, "PNG"))[0, 0].tolist() == [10, 20, 30]
    assert decode(encoded(palette, "PNG", transparency=1))[0, 0].tolist() == [255, 255, 255]


def test_an_animation_shows_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data)[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP"])
def test_a_cut_file_is_named(form: str, picture: Image.Image):
    data = encoded(picture, form)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("data", "said"), [(b"", "empty"), (b"<html>404</html>", "not a picture"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a picture")]
)
def test_what_is_no_picture_is_named(data: bytes, said: str):
    with pytest.raises(DataError, match=said):
        decode(data)


def test_a_damaged_header_is_named(picture: Image.Image):
    data = bytearray(encoded(picture, "PNG"))
    data[20:30] = bytes(10)
    with pytest.raises(DataError, match="header is damaged"):
        decode(bytes(data))


def test_a_bomb_is_refused_by_its_header(picture: Image.Image):
    bomb = bytearray(encoded(picture, "BMP"))
    bomb[18:26] = (20_000).to_bytes(4, "little") * 2  # claims 400 million pixels
    with pytest.raises(DataError, match="20000|400000000"):
        decode(bytes(bomb), max_pixels=10**6)
    with pytest.raises(DataError, match="72 x 48 .* more than 3455"):
        decode(encoded(picture, "PNG"), max_pixels=3455)
    assert decode(encoded(picture, "PNG"), max_pixels=3456).shape == (48, 72, 3)


def test_warnings_of_pillow_stay_inside(monkeypatch: pytest.MonkeyPatch, picture: Image.Image):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decode(encoded(picture, "PNG")).shape == (48, 72, 3)
    assert not caught


def test_the_key_of_a_failure_depends_on_name_and_bytes():
    keys = {failed_key("a.jpg", b""), failed_key("b.jpg", b""), failed_key("a.jpg", b"?")}
    assert len(keys) == 3
    assert all(key.startswith("x") and len(key) == 32 for key in keys)
