"""The losses of Pixel-SAIL written out, over what `reference.py` made: by loops, in float64.

Shapes: h×w of an image of logits, or of a teacher's map as the student is held against it; y×x as it is stored; C channels.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.student.reference import IGNORED, Made, Raw, Vector


def text_loss(made: Sequence[Made], raws: Sequence[Raw], alone: float, with_masks: float) -> float:
    """The mean over all supervised tokens of their cross-entropy, each times its sample's weight."""
    total, count = 0.0, 0
    for sample, raw in zip(made, raws, strict=True):
        labels = [label for label in sample.tokens.labels if label != IGNORED]
        for label, logits in zip(labels, sample.logits_SV, strict=True):
            largest = max(logits)
            crossed = largest + math.log(sum(math.exp(logit - largest) for logit in logits)) - logits[label]
            total, count = total + (with_masks if len(raw.masks) else alone) * crossed, count + 1
    return total / count


def read(image_hw: np.ndarray, x: float, y: float) -> float:
    """`image` at (x, y) in [0, 1]², bilinearly; pixel centres lie at halves, outside is zero."""
    height, width = image_hw.shape
    column, row = x * width - 0.5, y * height - 0.5
    value = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                value += float(image_hw[i, j]) * (1 - abs(row - i)) * (1 - abs(column - j))
    return value


def doubts(logits_hw: np.ndarray, points: Sequence[Vector]) -> list[float]:
    """How near to undecided the mask is at each point: zero is wholly so."""
    return [abs(read(logits_hw, *point)) for point in points]


def choose(logits_hw: np.ndarray, drawn: Sequence[Vector], fresh: Sequence[Vector], keep: int) -> list[Vector]:
    """The `keep` least certain of the drawn points, and the fresh ones."""
    doubt = doubts(logits_hw, drawn)
    order = sorted(range(len(drawn)), key=doubt.__getitem__)
    return [drawn[i] for i in order[:keep]] + list(fresh)


def mask_losses(made: Sequence[Made], raws: Sequence[Raw], points: Sequence[Sequence[Sequence[Vector]]]) -> tuple[float, float]:
    """(cross-entropy, dice) before their weights; `points` by sample and mask."""
    crossed = dice = 0.0
    count = 0
    for sample, raw, of_masks in zip(made, raws, points, strict=True):
        for logits_hw, mask_HW, chosen in zip(sample.mask_logits_nhw, raw.masks, of_masks, strict=True):
            predicted = [read(logits_hw, *point) for point in chosen]
            target = [read(mask_HW, *point) for point in chosen]
            pairs = list(zip(predicted, target, strict=True))
            crossed += sum(max(u, 0) - u * t + math.log1p(math.exp(-abs(u))) for u, t in pairs) / (len(chosen) + 1e-4)
            chance = [1 / (1 + math.exp(-u)) for u in predicted]
            overlap = sum(c * t for c, t in zip(chance, target, strict=True))
            dice += (1 - (2 * overlap + 1) / (sum(chance) + sum(target) + 1)) / (1 + 1e-4)
            count += 1
    return crossed / (count + 1e-4), dice / (count + 1e-4)


def resized(map_Cyx: np.ndarray, h: int, w: int) -> np.ndarray:
    """(h, w, C): the map on another grid, bilinearly between cell centres; beyond the outermost ones it stays as it is."""
    made = np.empty((h, w, len(map_Cyx)))
    for y, x in np.ndindex(h, w):
        row = min(max((y + 0.5) * map_Cyx.shape[1] / h - 0.5, 0), map_Cyx.shape[1] - 1)
        column = min(max((x + 0.5) * map_Cyx.shape[2] / w - 0.5, 0), map_Cyx.shape[2] - 1)
        total = np.zeros(len(map_Cyx))
        for i in {math.floor(row), math.ceil(row)}:
            for j in {math.floor(column), math.ceil(column)}:
                total += map_Cyx[:, i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
        made[y, x] = total
    return made


def distillation(made: Sequence[Made], raws: Sequence[Raw], teacher: str, reads: str, linear: tuple[Any, Any]) -> float:
    """The mean over pictures of the mean squared distance, before its weight; `linear` is (weight, bias)."""
    weight_CK, bias_C = (np.asarray(part, np.float64) for part in linear)
    total, count = 0.0, 0
    for sample, raw in zip(made, raws, strict=True):
        if teacher in raw.maps:
            student_hwK = sample.patches_hwH if reads == "patches" else sample.features_hws
            target_hwC = resized(raw.maps[teacher], *student_hwK.shape[:2])
            squares = (
                difference**2
                for y, x in np.ndindex(*student_hwK.shape[:2])
                for difference in weight_CK @ student_hwK[y, x] + bias_C - target_hwC[y, x]
            )
            total, count = total + sum(squares) / target_hwC.size, count + 1
    return total / (count + 1e-4)
