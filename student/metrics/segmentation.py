"""Scores of masks for expressions: cIoU, gIoU, precision at 0.5, and accuracy at telling whether there is a target.

Masks are bool HW. The first predicted mask of an expression is the one that counts; a missing one counts as empty, and with
`skip_missing`, as the authors score reasoning and visual-prompt tasks, is left out of cIoU but still a zero in gIoU.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

CIOU_EPSILON, GIOU_EPSILON = 1e-10, 1e-5


@dataclass(frozen=True)
class Overlap:
    """Pixels of one expression: in both masks, in either, in the target; `missing` where nothing was predicted."""

    intersection: int
    union: int
    target: int
    missing: bool = False

    @property
    def iou(self) -> float:
        """1 where both are empty."""
        return self.intersection / (self.union + GIOU_EPSILON) if self.union else 1.0


def overlap(predicted_HW: np.ndarray | None, target_HW: np.ndarray, ignored_HW: np.ndarray | None = None) -> Overlap:
    """The `Overlap` of two masks of one size outside the ignored pixels."""
    counted = np.ones_like(target_HW) if ignored_HW is None else ~ignored_HW
    target = target_HW & counted
    predicted = np.zeros_like(target) if predicted_HW is None else predicted_HW & counted
    both, either, wanted = (int(np.count_nonzero(mask)) for mask in (predicted & target, predicted | target, target))
    return Overlap(both, either, wanted, missing=predicted_HW is None)


def segmentation_scores(overlaps: Iterable[Overlap], skip_missing: bool = False) -> dict[str, float]:
    """ciou, giou, precision (IoU ≥ 0.5, of expressions with a target), n_acc and t_acc, each in 0 … 1.

    n_acc: of the expressions without a target, how many got an empty mask; t_acc: of those with one, how many did not.
    A score of which there is no case is left out.
    """
    items = list(overlaps)
    if not items:
        return {}
    counted = [item for item in items if not (item.missing and skip_missing)]
    intersection, union = sum(item.intersection for item in counted), sum(item.union for item in counted)
    ious = [0.0 if item.missing and skip_missing else item.iou for item in items]
    scores = {"ciou": intersection / (union + CIOU_EPSILON), "giou": float(np.mean(ious))}
    aimed, aimless = [item for item in items if item.target], [item for item in items if not item.target]
    if aimed:
        scores["precision"] = float(np.mean([2 * item.intersection >= item.union for item in aimed]))
        scores["t_acc"] = float(np.mean([_area(item) > 0 for item in aimed]))
    if aimless:
        scores["n_acc"] = float(np.mean([_area(item) == 0 for item in aimless]))
    return scores


def _area(item: Overlap) -> int:
    """Pixels of the prediction."""
    return item.union - item.target + item.intersection
