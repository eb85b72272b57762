"""SAM 2.1 as a segmenter: prompted with clicks and boxes, or clicked point by point over the whole picture.

N prompted objects   P places of a prompt   K masks an object   M masks in all   H, W the image   h, w a low-resolution mask
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from teachers import pixels
from teachers.base import Proposal
from teachers.sam2 import filters
from teachers.sam2.config import Layer, Sam2Config
from teachers.sam2.network import level, load, preprocess, stages
from teachers.sam2.prompts import INSIDE, read_prompts
from teachers.sam2.rounding import round_as_original

PROMPTS_PER_BATCH = 64
# In the order that the mask decoder takes them.
LEVELS: tuple[Layer, ...] = ("high_res_0", "high_res_1", "image_embed")


class Sam2Segmenter:
    """Regions by prompts, or everything in the picture: one click at each point of a grid, then the official filters.

    A mask stays if its predicted quality is above `min_score`, its stability reaches `min_stability` and its box does not
    overlap that of a better one by more than `max_overlap`. SAM 2 knows no categories.
    """

    def __init__(self, config: Sam2Config, device: str = "cpu"):
        self._config, self._device = config, device
        self._model = load(config).to(device)
        round_as_original(self._model.mask_decoder)

    @torch.inference_mode()
    def segments(self, image: np.ndarray) -> list[Proposal]:
        size = (image.shape[0], image.shape[1])
        places_N12 = self._scaled(point_grid(self._config.points_per_side, size)[:, None], size)
        levels = self._levels(image)
        found = [self._steady(levels, places, size) for places in places_N12.split(PROMPTS_PER_BATCH)]
        masks_MHW, scores_M = (torch.cat(parts) for parts in zip(*found, strict=True))
        kept = filters.suppress(filters.boxes(masks_MHW), scores_M, self._config.max_overlap)
        return _proposals(masks_MHW[kept], scores_M[kept])

    def _steady(self, levels: list[Tensor], places_N12: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The masks (M, H, W) bool and scores (M) of single clicks that pass both thresholds, none of them empty."""
        meanings_N1 = torch.full(places_N12.shape[:2], INSIDE, device=self._device)
        logits_NKhw, scores_NK = self._answer(levels, places_N12, meanings_N1, several=True)
        good_NK = scores_NK > self._config.min_score
        some_N = good_NK.any(1)
        # All guesses of a click are resized together, for torch rounds otherwise where it sees them one by one.
        logits_MHW = pixels.resize(logits_NKhw[some_N], size)[good_NK[some_N]]
        steady = (filters.stability(logits_MHW) >= self._config.min_stability) & (logits_MHW > 0).any(2).any(1)
        return logits_MHW[steady] > 0, scores_NK[good_NK][steady]

    @torch.inference_mode()
    def prompted(
        self,
        image: np.ndarray,
        *,
        points: Sequence[Sequence[Sequence[float]]] | np.ndarray | None = None,
        labels: Sequence[Sequence[int]] | np.ndarray | None = None,
        boxes: Sequence[Sequence[float]] | np.ndarray | None = None,
        several: bool = True,
    ) -> list[Proposal]:
        """The masks of N objects, object by object in the network's order, unfiltered: three guesses each, or with
        `several=False` the one that suits a box or many clicks.

        `points` (N, P, 2) are clicks XY on each object, `labels` (N, P) say which of them lie inside (1, as all do where
        nothing is said) and which outside (0), `boxes` (N, 4) are XYXY; all in pixels. Other shapes raise `DataError`.
        """
        size = (image.shape[0], image.shape[1])
        places_NP2, meanings_NP = read_prompts(points, labels, boxes)
        places_NP2, meanings_NP = self._scaled(places_NP2, size), meanings_NP.to(self._device)
        levels, proposals = self._levels(image), []
        for at in range(0, len(places_NP2), PROMPTS_PER_BATCH):
            batch = slice(at, at + PROMPTS_PER_BATCH)
            logits_NKhw, scores_NK = self._answer(levels, places_NP2[batch], meanings_NP[batch], several)
            masks_NKHW = pixels.resize(logits_NKhw, size) > 0
            proposals += _proposals(masks_NKHW.flatten(0, 1), scores_NK.flatten())
        return proposals

    def _scaled(self, places_NP2: Tensor, size: tuple[int, int]) -> Tensor:
        """XY in pixels of the image to pixels of the square that the network sees, on its device."""
        return (places_NP2 / torch.tensor([size[1], size[0]]) * self._config.image_size).to(self._device)

    def _levels(self, image: np.ndarray) -> list[Tensor]:
        prepared_13HW = preprocess(image, self._config.image_size).to(self._device)
        with pixels.precision(self._config.dtype, self._device):
            stages_1hwC = stages(self._model, prepared_13HW)
            return [level(self._model, stages_1hwC, layer) for layer in LEVELS]

    def _answer(self, levels: list[Tensor], places_NP2: Tensor, meanings_NP: Tensor, several: bool) -> tuple[Tensor, Tensor]:
        """Logits (N, K, h, w) and scores (N, K), float32."""
        # Boxes go in as two places, as the original has it; the boxes of transformers come after the clicks.
        with pixels.precision(self._config.dtype, self._device):
            answer = self._model(
                image_embeddings=levels,
                input_points=places_NP2[None],
                input_labels=meanings_NP[None],
                multimask_output=several,
            )
        return answer.pred_masks[0].float(), answer.iou_scores[0].float()


def point_grid(side: int, size: tuple[int, int]) -> Tensor:
    """(side * side, 2) points XY in pixels of an image of `size`, row by row, each in the middle of its cell."""
    at = np.linspace(1 / (2 * side), 1 - 1 / (2 * side), side)
    x, y = np.meshgrid(at * size[1], at * size[0])
    return torch.from_numpy(np.stack([x.ravel(), y.ravel()], axis=1)).float()


def _proposals(masks_MHW: Tensor, scores_M: Tensor) -> list[Proposal]:
    pairs = zip(masks_MHW.cpu().numpy(), scores_M.tolist(), strict=True)
    return [Proposal(mask, score, "", True) for mask, score in pairs]
