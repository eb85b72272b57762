"""Mask2Former as a segmenter: the panoptic regions of a picture, or its instances.

Both follow the original inference. The library's post-processing differs from it: it goes through 384 x 384, weighs a mask by
its score before it asks where the mask is at least one half, and keeps of a region what lies outside of its own mask.

    Q queries   L labels, the last of them "nothing"   H, W the image   h, w stride 4 of the input
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from schemas.errors import ConfigError
from teachers import pixels
from teachers.base import Proposal
from teachers.mask2former.config import Mask2FormerConfig
from teachers.mask2former.network import load, preprocess

MASK_THRESHOLD = 0.5
Region = tuple[int, float, Tensor]


class Mask2FormerSegmenter:
    """Panoptic regions, which do not overlap: each thing on its own, all stuff of a category together. Or instances, which
    may overlap: a mask is there once for each label that it scores high for."""

    def __init__(self, config: Mask2FormerConfig, device: str = "cpu"):
        if config.backend != "transformers":
            raise ConfigError(f"the {config.backend} backend gives features only", "backend", 'Use "transformers".')
        self._config, self._device = config, device
        self._model = load(config).to(device)

    @torch.inference_mode()
    def segments(self, image: np.ndarray) -> list[Proposal]:
        prepared_13HW = preprocess(image, self._config).to(self._device)
        with pixels.precision(self._config.dtype, self._device):
            classes_1QL, masks_1Qhw = self._model(prepared_13HW)
        scores_QL, input_size = classes_1QL[0].float().softmax(-1), (prepared_13HW.shape[-2], prepared_13HW.shape[-1])

        def logits_of(queries: Tensor) -> Tensor:
            """(queries, H, W), by way of the input's size, as the authors do it."""
            enlarged = pixels.resize(masks_1Qhw[:, queries].float(), input_size)
            return pixels.resize(enlarged, (image.shape[0], image.shape[1]))[0]

        regions_of = panoptic if self._config.task == "panoptic" else instances
        return [self._proposal(*region) for region in sorted(regions_of(scores_QL, logits_of, self._config), key=_descending)]

    def _proposal(self, label: int, score: float, mask_HW: Tensor) -> Proposal:
        name = self._model.config.id2label[label]
        return Proposal(mask_HW.cpu().numpy(), score, name, label < self._config.things)


def _descending(region: Region) -> float:
    return -region[1]


def panoptic(scores_QL: Tensor, logits_of: Callable[[Tensor], Tensor], config: Mask2FormerConfig) -> list[Region]:
    """(label, score, mask HW) of each region, disjoint, in order of query.

    Every pixel goes to the query with the largest score x mask; a query that keeps less than `min_overlap` of its own mask
    is dropped and leaves its pixels empty. Stuff of one label is one region with the best of their scores.
    """
    scores_Q, labels_Q = scores_QL.max(-1)
    kept = ((labels_Q < scores_QL.shape[-1] - 1) & (scores_Q > config.min_score)).nonzero()[:, 0]
    if not len(kept):
        return []
    scores_Q, labels_Q, masks_QHW = scores_Q[kept], labels_Q[kept], logits_of(kept).sigmoid()
    owner_HW = (scores_Q[:, None, None] * masks_QHW).argmax(0)
    regions: list[Region] = []
    stuff: dict[int, int] = {}
    for query, (score, label) in enumerate(zip(scores_Q.tolist(), labels_Q.tolist(), strict=True)):
        owned_HW, own_HW = owner_HW == query, masks_QHW[query] >= MASK_THRESHOLD
        mask_HW = owned_HW & own_HW
        if not mask_HW.any() or int(owned_HW.sum()) / int(own_HW.sum()) < config.min_overlap:
            continue
        if label in stuff:
            _, best, merged_HW = regions[stuff[label]]
            regions[stuff[label]] = (label, max(best, score), merged_HW | mask_HW)
            continue
        if label >= config.things:
            stuff[label] = len(regions)
        regions.append((label, score, mask_HW))
    return regions


def instances(scores_QL: Tensor, logits_of: Callable[[Tensor], Tensor], config: Mask2FormerConfig) -> list[Region]:
    """(label, score, mask HW) of the `max_instances` best pairs of query and label that are things.

    The score is that of the label times the mean of the mask's probabilities inside of it, and must exceed `min_score`.
    """
    scores_F, labels = scores_QL[:, :-1].flatten(), scores_QL.shape[-1] - 1
    best_K, pairs_K = scores_F.topk(min(config.max_instances, len(scores_F)))
    regions: list[Region] = []
    for score, pair in zip(best_K.tolist(), pairs_K, strict=True):
        label = int(pair % labels)
        # A mask's score is below one: what fails by its label's score alone need not be enlarged.
        if label >= config.things or score <= config.min_score:
            continue
        logits_HW = logits_of(pair[None] // labels)[0]
        mask_HW = logits_HW > 0
        score *= float((logits_HW.sigmoid() * mask_HW).sum() / (mask_HW.sum() + 1e-6))
        if mask_HW.any() and score > config.min_score:
            regions.append((label, score, mask_HW))
    return regions
