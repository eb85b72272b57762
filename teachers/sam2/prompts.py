"""Clicks and boxes as the prompt encoder reads them: places, and what each of them means.

N objects   P places of each
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.errors import DataError

OUTSIDE, INSIDE, UPPER_LEFT, LOWER_RIGHT = range(4)


def read_prompts(points: Any, labels: Any, boxes: Any) -> tuple[Tensor, Tensor]:
    """Places (N, P, 2) XY float32 and meanings (N, P) int: the corners of the box, then the clicks, as the original has it."""
    if points is None and boxes is None:
        raise DataError("a prompt needs points or boxes, here are neither")
    if points is None and labels is not None:
        raise DataError("labels belong to points, here are none")
    parts = [read(*given) for read, given in ((_corners, (boxes,)), (_clicks, (points, labels))) if given[0] is not None]
    if len({len(places) for places, _ in parts}) != 1:
        raise DataError(f"{len(boxes)} boxes and points on {len(points)} objects do not belong together")
    places, meanings = zip(*parts, strict=True)
    return torch.cat(places, dim=1), torch.cat(meanings, dim=1)


def _corners(boxes: Any) -> tuple[Tensor, Tensor]:
    boxes_N4 = _numbers(boxes, "boxes (objects, 4) XYXY")
    _require(boxes_N4.ndim == 2 and boxes_N4.shape[1] == 4, "boxes (objects, 4) XYXY", boxes_N4)
    return boxes_N4.view(-1, 2, 2), torch.tensor([[UPPER_LEFT, LOWER_RIGHT]]).repeat(len(boxes_N4), 1)


def _clicks(points: Any, labels: Any) -> tuple[Tensor, Tensor]:
    points_NP2 = _numbers(points, "points (objects, clicks, 2) XY")
    _require(points_NP2.ndim == 3 and points_NP2.shape[2] == 2, "points (objects, clicks, 2) XY", points_NP2)
    if labels is None:
        return points_NP2, torch.full(points_NP2.shape[:2], INSIDE)
    labels_NP = _numbers(labels, "labels (objects, clicks)")
    _require(labels_NP.shape == points_NP2.shape[:2], "labels (objects, clicks), one a point", labels_NP)
    if not ((labels_NP == INSIDE) | (labels_NP == OUTSIDE)).all():
        raise DataError("a label is 1 for a click inside the object and 0 for one outside")
    return points_NP2, labels_NP.long()


def _numbers(given: Any, form: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(given, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise DataError(f"a prompt takes {form}: {error}") from None


def _require(fits: bool, form: str, given: Tensor) -> None:
    if not fits or not given.numel() or not given.isfinite().all():
        raise DataError(f"a prompt takes {form}, all finite, here are {tuple(given.shape)}")
