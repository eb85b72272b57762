"""Scores of masks for expressions: cIoU, gIoU, precision at 0.5, and accuracy at telling whether there is a target.

Masks are bool HW. The first predicted mask of an expression is the one that counts; a missing one counts as empty.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

CIOU_EPSILON, GIOU_EPSILON = 1e-10, 1e-5


@dataclass(frozen=True)
class Overlap:
    """Pixels of one expression: in both masks, in either, in the target; `missing` where nothing was predicted, and the number
    of `targets`, of which the first is the one."""

    intersection: int
    union: int
    target: int
    missing: bool = False
    targets: int = 1

    @property
    def iou(self) -> float:
        """1 where both are empty."""
        return self.intersection / (self.union + GIOU_EPSILON) if self.union else 1.0


def overlap(predicted_HW: np.ndarray | None, target_HW: np.ndarray, void_HW: np.ndarray | None = None) -> Overlap:
    """The `Overlap` of two masks of one size outside the void pixels."""
    counted = np.ones_like(target_HW) if void_HW is None else ~void_HW
    target = target_HW & counted
    predicted = np.zeros_like(target) if predicted_HW is None else predicted_HW & counted
    both, either, wanted = (int(np.count_nonzero(mask)) for mask in (predicted & target, predicted | target, target))
    return Overlap(both, either, wanted, missing=predicted_HW is None)


def segmentation_scores(overlaps: Iterable[Overlap]) -> dict[str, float]:
    """ciou, giou, precision (IoU ≥ 0.5, of expressions with a target), n_acc and t_acc, each in 0 … 1.

    n_acc: of the expressions without a target, how many got an empty mask; t_acc: of those with one, how many did not.
    A score of which there is no case is left out.
    """
    items = list(overlaps)
    if not items:
        return {}
    scores = {"ciou": _ciou(items), "giou": float(np.mean([item.iou for item in items]))}
    aimed, aimless = [item for item in items if item.target], [item for item in items if not item.target]
    if aimed:
        scores["precision"] = float(np.mean([2 * item.intersection >= item.union for item in aimed]))
        scores["t_acc"] = float(np.mean([_area(item) > 0 for item in aimed]))
    if aimless:
        scores["n_acc"] = float(np.mean([_area(item) == 0 for item in aimless]))
    return scores


def paper_reference_scores(overlaps: Iterable[Overlap]) -> dict[str, float]:
    """ciou_paper and giou_paper, as the authors score segmentation by reference: what got no mask is left out of cIoU and is a
    zero in gIoU, where each IoU is divided by the number of targets, though only the first is looked at."""
    items = list(overlaps)
    if not items:
        return {}
    ious = [0.0 if item.missing else item.iou / max(item.targets, 1) for item in items]
    return {"ciou_paper": _ciou([item for item in items if not item.missing]), "giou_paper": float(np.mean(ious))}


def _ciou(items: Sequence[Overlap]) -> float:
    return sum(item.intersection for item in items) / (sum(item.union for item in items) + CIOU_EPSILON)


def _area(item: Overlap) -> int:
    """Pixels of the prediction."""
    return item.union - item.target + item.intersection
