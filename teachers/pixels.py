"""Between numpy images and what a network takes and gives: normalised tensors in, maps on a grid out."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from schemas.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def require_rgb(image: np.ndarray) -> None:
    """Raises `DataError` for anything but HWC uint8 RGB."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"a teacher takes HWC uint8 RGB, got {image.dtype} of shape {image.shape}")


def to_unit(image: np.ndarray) -> Tensor:
    """(1, 3, H, W) float32 in 0..1."""
    require_rgb(image)
    return torch.tensor(image).permute(2, 0, 1)[None].to(torch.float32).div_(255)


def normalise(unit_NCHW: Tensor) -> Tensor:
    """Minus ImageNet's mean, over its standard deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (unit_NCHW - mean).div_(std)


def to_grid(map_1CHW: Tensor, grid: tuple[int, int] | None) -> np.ndarray:
    """The map (C, *grid) float32: bilinear, align_corners False, no antialias, as the student would resize it."""
    return (map_1CHW.float() if grid is None else resize(map_1CHW.float(), grid))[0].cpu().numpy()


def resize(values_NCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear at pixel centres to (height, width); no maps stay no maps."""
    if not values_NCHW.numel():
        return values_NCHW.new_empty((*values_NCHW.shape[:2], *size))
    return F.interpolate(values_NCHW, size=size, mode="bilinear", align_corners=False)


def precision(dtype: str, device: str) -> AbstractContextManager[object]:
    """A context in which matrix products and convolutions run in `dtype`; the weights stay float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, dtype))
