"""A picture as the student sees it: resized to whole patches, normalised, cut into rows of numbers.

Shapes: H, W pixels; h, w patch rows and columns; p patch side. Sizes are (width, height), grids are (h, w).
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from schemas.config import Compat
from schemas.grids import patched_size


class Look(NamedTuple):
    """How a picture is resized, and the mean and deviation of red, green and blue, of values from 0 to 1, that it is held
    against."""

    filter: Image.Resampling
    mean: np.ndarray
    deviation: np.ndarray


IMAGENET = Look(
    Image.Resampling.BILINEAR,
    np.array((0.485, 0.456, 0.406), np.float32),
    np.array((0.229, 0.224, 0.225), np.float32),
)


def patches_of(image_HWC: np.ndarray, patch: int, max_side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """(h·w, 3·p·p) float32 patches of an RGB uint8 image whose longer side is at most `max_side`, and their grid (h, w);
    values are ImageNet-normalised."""
    height, width = image_HWC.shape[:2]
    return cut(image_HWC, patched_size(width, height, patch, max_side), patch, IMAGENET)


def cut(image_HWC: np.ndarray, size: tuple[int, int], patch: int, look: Look) -> tuple[np.ndarray, tuple[int, int]]:
    """(h·w, 3·p·p) float32 patches of an RGB uint8 image brought to `size`, which is of whole patches, and their grid (h, w).

    Patches run along the rows of the grid; within a patch the order is channel, row, column.
    """
    picture = Image.fromarray(image_HWC).resize(size, look.filter)
    pixels_HWC = (np.asarray(picture, np.float32) / 255 - look.mean) / look.deviation
    w, h = size[0] // patch, size[1] // patch
    patches = pixels_HWC.reshape(h, patch, w, patch, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(patches).reshape(h * w, 3 * patch * patch), (h, w)


def prompt_patches(mask_HW: np.ndarray, grid: tuple[int, int], *, patch: int = 1, compat: Compat = "correct") -> np.ndarray:
    """(h, w) bool: the patches that hold at least one pixel of the mask.

    Every pixel belongs to the patch its centre falls in, so a mask with a pixel always marks a patch, and a patch that is
    smaller than a pixel is marked by the one it lies in. With "paper" the mask
    is first shrunk to whole patches, `patch` pixels a side, by NEAREST, as the release does: it may then mark none, and
    most single points on a large picture do not.
    """
    h, w = grid
    if compat == "paper":
        shrunk = Image.fromarray(mask_HW.astype(np.uint8)).resize((w * patch, h * patch), Image.Resampling.NEAREST)
        return np.asarray(shrunk).reshape(h, patch, w, patch).any(axis=(1, 3))
    return _pixels_held(mask_HW, grid) > 0


def give_back(index_hw: np.ndarray, prompts: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """(h, w): `index_hw`, the number of each patch's prompt, with a patch for each prompt that others wholly cover: the one
    that holds most of its pixels, of those whose owner has another besides. Where there is none, owners make way for it, each
    to another patch of its own pixels; a prompt stays hidden only where there are not patches enough for all.

    prompts: numbers and HW masks, the largest first. The smallest takes first, and of equal patches the first.
    """
    given_hw, masks = index_hw.copy(), dict(prompts)
    held_N = cache(lambda k: _pixels_held(masks[k], index_hw.shape).ravel())
    for k, _ in reversed(prompts):
        if not (given_hw == k).any():
            _take(k, given_hw.reshape(-1), held_N, set())
    return given_hw


def _take(k: int, given_N: np.ndarray, held_N: Callable[[int], np.ndarray], passed: set[int]) -> bool:
    """Give prompt `k` a patch, if one can be had without another prompt's losing its last. held_N: of a prompt, how many of its
    pixels lie in each patch. passed: patches that are asked for already."""
    _, owner_N, counts = np.unique(given_N, return_inverse=True, return_counts=True)
    mine_N = held_N(k)
    spare_N = np.where(counts[owner_N] > 1, mine_N, 0)
    if spare_N.any():
        given_N[spare_N.argmax()] = k
        return True
    for place in np.argsort(-mine_N, kind="stable")[: np.count_nonzero(mine_N)].tolist():
        if place not in passed:
            passed.add(place)
            if _take(int(given_N[place]), given_N, held_N, passed):
                given_N[place] = k
                return True
    return False


def _pixels_held(mask_HW: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(h, w): how many of the mask's pixels lie in each patch. Where there are more patches than pixels every patch also takes
    the one in its midst, or a mark would have holes."""
    (height, width), (h, w) = mask_HW.shape, grid
    y, x = np.nonzero(mask_HW)
    places = (2 * y + 1) * h // (2 * height) * w + (2 * x + 1) * w // (2 * width)
    held_hw = np.bincount(places, minlength=h * w).reshape(grid)
    if h > height or w > width:
        rows, columns = ((2 * np.arange(n) + 1) * pixels // (2 * n) for n, pixels in ((h, height), (w, width)))
        held_hw += mask_HW[np.ix_(rows, columns)]
    return held_hw
