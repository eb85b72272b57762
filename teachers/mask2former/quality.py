"""How well regions are found: overlap, label, panoptic quality.

T regions of a picture   R proposals   L labels   P pixels
"""

from collections.abc import Sequence

import numpy as np

from teachers.mask2former.assignment import assignment

NOBODY = -1  # the label of a proposal whose name is no category of the pictures
FOUND = 0.5  # overlap from which on a region counts as found


class Tally:
    """Counts over pictures, by label. Every region is held against one proposal, so that their overlaps add up to the most."""

    def __init__(self, labels: int):
        self._overlaps, self._named = list[float](), list[bool]()
        self._sum_L, self._regions_L, self._proposals_L = (np.zeros(labels) for _ in range(3))

    def add(self, regions: Sequence[tuple[int, np.ndarray]], proposals: Sequence[tuple[int, np.ndarray]]) -> None:
        overlap_TR = _overlaps([mask for _, mask in regions], [mask for _, mask in proposals])
        pairs = dict(zip(*(side.tolist() for side in assignment(-overlap_TR)), strict=True))
        for number, (label, _) in enumerate(regions):
            overlap = float(overlap_TR[number, pairs[number]]) if number in pairs else 0.0
            named = number in pairs and overlap > 0 and proposals[pairs[number]][0] == label
            self._overlaps.append(overlap)
            self._named.append(named)
            self._regions_L[label] += 1
            if named and overlap > FOUND:
                self._sum_L[label] += overlap
        for label in (label for label, _ in proposals if label != NOBODY):
            self._proposals_L[label] += 1

    def scores(self) -> dict[str, float]:
        """`mean_iou`: the mean overlap of the regions, nothing where there is no proposal left; `class_accuracy`: how many of
        them have a proposal of their label; `panoptic_quality` of Kirillov et al., the mean over the labels."""
        seen = (self._regions_L + self._proposals_L) > 0
        quality_L = 2 * self._sum_L[seen] / (self._regions_L + self._proposals_L)[seen]
        values = {
            "panoptic_quality": quality_L.mean(),
            "mean_iou": np.mean(self._overlaps),
            "class_accuracy": np.mean(self._named),
        }
        return {name: round(float(value), 4) for name, value in values.items()}


def _overlaps(ones: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """(ones, others) intersection over union."""
    if not others:
        return np.zeros((len(ones), 0))
    a_TP, b_RP = (np.stack(masks).reshape(len(masks), -1).astype(np.float32) for masks in (ones, others))
    both_TR = a_TP @ b_RP.T
    return both_TR / (a_TP.sum(1)[:, None] + b_RP.sum(1) - both_TR)
