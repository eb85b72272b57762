"""Which masks of the automatic generator stay: the official rules, number for number, without torchvision.

M masks   H, W the image
"""

import torch
from torch import Tensor

STABILITY_OFFSET = 1.0


def stability(logits_MHW: Tensor) -> Tensor:
    """(M) overlap of each mask cut at a higher with the same cut at a lower logit, 0 where the latter is empty."""
    high = (logits_MHW > STABILITY_OFFSET).sum((1, 2))
    low = (logits_MHW > -STABILITY_OFFSET).sum((1, 2))
    return high / low.clamp(min=1)


def boxes(masks_MHW: Tensor) -> Tensor:
    """(M, 4) the first and last column and row, XYXY, of masks that are not empty. The last ones are inclusive, so that a
    line has no area."""
    edges = []
    for along in (masks_MHW.any(1), masks_MHW.any(2)):
        inside = along.int()
        edges.append((inside.argmax(1), along.shape[1] - 1 - inside.flip(1).argmax(1)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1)


def suppress(boxes_M4: Tensor, scores_M: Tensor, max_overlap: float) -> Tensor:
    """Indices, best first, of the boxes whose intersection over union with each better kept one is at most `max_overlap`.

    Equal scores stay in order. The numbers are those of torchvision on the CPU, whatever the device: an overlap in float32
    against a limit in float64. Two boxes without area have no overlap.
    """
    order = scores_M.cpu().argsort(descending=True, stable=True)
    ranked_M4 = boxes_M4.cpu()[order].float()
    stays_M = torch.ones(len(order), dtype=torch.bool)
    for rank in range(len(order)):
        if stays_M[rank]:
            overlaps = _overlaps(ranked_M4[rank], ranked_M4[rank + 1 :])
            stays_M[rank + 1 :] &= ~(overlaps.double() > max_overlap)
    return order[stays_M].to(boxes_M4.device)


def _overlaps(box_4: Tensor, boxes_M4: Tensor) -> Tensor:
    low, high = torch.maximum(box_4[:2], boxes_M4[:, :2]), torch.minimum(box_4[2:], boxes_M4[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    return shared / ((box_4[2:] - box_4[:2]).prod() + (boxes_M4[:, 2:] - boxes_M4[:, :2]).prod(1) - shared)
