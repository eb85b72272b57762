"""SAM 2.1 through transformers: the image embedding as a teacher, prompted point by point as a segmenter.

The input follows the official transform, not the image processor of transformers: pixels to 0..1, squashed to a square
(bilinear, antialiased, as torchvision resizes a tensor), then normalised.

    N points in a batch   M masks, three a point   H, W the image   h, w the low-resolution mask (a quarter of the input)
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Sam2Config as Architecture
from transformers import (
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from schemas.errors import ConfigError
from schemas.features import FeatureSpec
from teachers import pixels, weights
from teachers.base import Proposal
from teachers.config import Sam2Config, Sam2Sizes

GAIN = 0.72
POINTS_PER_BATCH = 64
STABILITY_OFFSET = 1.0


class Sam2Teacher:
    """The coarsest pyramid level with the no-memory embedding added: `image_embed` of the official predictor.

    Images go through the network one by one: kernels are chosen by batch size, so a batch could change stored bits.
    """

    def __init__(self, config: Sam2Config, spec: FeatureSpec, device: str = "cpu"):
        self._config, self._grid, self._device = config, (spec.height, spec.width), device
        self._model = load(config).to(device)

    def features(self, images: list[np.ndarray]) -> list[np.ndarray]:
        return [self._feature(image) for image in images]

    @torch.inference_mode()
    def _feature(self, image: np.ndarray) -> np.ndarray:
        with pixels.precision(self._config.dtype, self._device):
            levels = self._model.get_image_embeddings(preprocess(image, self._config.image_size).to(self._device))
        return pixels.to_grid(levels[-1], self._grid)


class Sam2Segmenter:
    """Everything in the picture: one click at each point of a grid, then the official filters.

    A mask stays if its predicted quality and its stability reach the config's thresholds and if its box does not overlap
    that of a better one by more than `max_overlap`. SAM 2 knows no categories.
    """

    def __init__(self, config: Sam2Config, device: str = "cpu"):
        self._config, self._device = config, device
        self._model = load(config).to(device)
        self._points = point_grid(config.points_per_side).to(device) * config.image_size

    @torch.inference_mode()
    def segments(self, image: np.ndarray) -> list[Proposal]:
        size = (image.shape[0], image.shape[1])
        with pixels.precision(self._config.dtype, self._device):
            levels = self._model.get_image_embeddings(preprocess(image, self._config.image_size).to(self._device))
            found = [self._click(levels, points, size) for points in self._points.split(POINTS_PER_BATCH)]
        masks_MHW, scores_M = (torch.cat(parts) for parts in zip(*found, strict=True))
        kept = suppress(boxes(masks_MHW), scores_M, self._config.max_overlap)
        masks, scores = masks_MHW[kept].cpu().numpy(), scores_M[kept].tolist()
        return [Proposal(mask, score, "", True) for mask, score in zip(masks, scores, strict=True)]

    def _click(self, levels: list[Tensor], points_N2: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The masks (M, H, W) bool and scores (M) that pass both thresholds, none of them empty."""
        answer = self._model(image_embeddings=levels, input_points=points_N2[None, :, None], multimask_output=True)
        logits_Mhw, scores_M = answer.pred_masks[0].flatten(0, 1).float(), answer.iou_scores[0].flatten().float()
        good = scores_M >= self._config.min_score
        logits_MHW = pixels.resize(logits_Mhw[good][None], size)[0]
        steady = (stability(logits_MHW) >= self._config.min_stability) & (logits_MHW > 0).any(2).any(1)
        return logits_MHW[steady] > 0, scores_M[good][steady]


def preprocess(image: np.ndarray, image_size: int) -> Tensor:
    """(1, 3, image_size, image_size), squashed and normalised."""
    square = F.interpolate(
        pixels.to_unit(image), size=(image_size, image_size), mode="bilinear", align_corners=False, antialias=True
    )
    return pixels.normalise(square)


def point_grid(side: int) -> Tensor:
    """(side * side, 2) points XY in 0..1, row by row, each in the middle of its cell."""
    at = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def stability(logits_MHW: Tensor) -> Tensor:
    """(M) overlap of each mask cut at a higher with the same cut at a lower logit, 0 where the latter is empty."""
    high = (logits_MHW > STABILITY_OFFSET).sum((1, 2))
    low = (logits_MHW > -STABILITY_OFFSET).sum((1, 2))
    return high / low.clamp(min=1)


def boxes(masks_MHW: Tensor) -> Tensor:
    """(M, 4) XYXY pixels around masks that are not empty, upper bounds exclusive."""
    edges = []
    for along in (masks_MHW.any(1), masks_MHW.any(2)):
        inside = along.int()
        edges.append((inside.argmax(1), along.shape[1] - inside.flip(1).argmax(1)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1)


def suppress(boxes_M4: Tensor, scores_M: Tensor, max_overlap: float) -> Tensor:
    """Indices, best first, of the boxes whose intersection over union with each better kept one is at most `max_overlap`."""
    order = scores_M.argsort(descending=True, stable=True)
    overlap_MM = _overlaps(boxes_M4[order].double())
    kept: list[int] = []
    for rank, row in enumerate(overlap_MM.tolist()):
        if all(row[better] <= max_overlap for better in kept):
            kept.append(rank)
    return order[kept]


def _overlaps(boxes_M4: Tensor) -> Tensor:
    low = torch.maximum(boxes_M4[:, None, :2], boxes_M4[None, :, :2])
    high = torch.minimum(boxes_M4[:, None, 2:], boxes_M4[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = (boxes_M4[:, 2:] - boxes_M4[:, :2]).prod(1)
    return shared / (areas[:, None] + areas[None, :] - shared)


def load(config: Sam2Config) -> Sam2Model:
    """The frozen network in float32 on the CPU."""
    if config.is_random and config.sizes is not None:
        plan = architecture(config, config.sizes)
        return weights.frozen(weights.seeded(lambda: Sam2Model(plan), config.seed, GAIN))
    path = weights.locate(config.weights, config.folder)
    return weights.frozen(_load_folder(config, path) if path.is_dir() else _load_official(config, path))


def _load_official(config: Sam2Config, path: Path) -> Sam2Model:
    if config.sizes is None:
        raise ConfigError("an official checkpoint does not say its architecture", str(path), "Set `sizes`.")
    plan, state = architecture(config, config.sizes), weights.from_official(weights.read_official(path))
    return weights.fitted(lambda: Sam2Model(plan), state, path, spare=weights.VIDEO_ONLY)


def _load_folder(config: Sam2Config, folder: Path) -> Sam2Model:
    content = weights.read_config(folder)
    # The published file describes the video model; these parts of it are the image model.
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    published = Architecture(**{part: content[part] for part in parts if part in content})
    found = {
        "channels": published.vision_config.fpn_hidden_size,
        "image_size": published.prompt_encoder_config.image_size,
        "sizes": sizes_of(published).identity(),
    }
    weights.require_architecture(config.identity(), found, folder)
    return weights.fitted(lambda: Sam2Model(published), weights.read_folder(folder), folder, spare=weights.VIDEO_ONLY)


def sizes_of(published: Architecture) -> Sam2Sizes:
    """The sizes that `architecture` would make this of."""
    hiera, decoder = published.vision_config.backbone_config, published.mask_decoder_config
    return Sam2Sizes(
        widths=hiera.embed_dim_per_stage,
        heads=hiera.num_attention_heads_per_stage,
        blocks=hiera.blocks_per_stage,
        global_blocks=hiera.global_attention_blocks,
        windows=hiera.window_size_per_stage,
        position_grid=hiera.window_positional_embedding_background_size,
        decoder_heads=decoder.num_attention_heads,
        decoder_mlp=decoder.mlp_dim,
    )


def architecture(config: Sam2Config, sizes: Sam2Sizes) -> Architecture:
    """What transformers calls a network of these sizes."""
    side, channels = config.image_size // 4, config.channels
    hiera = Sam2HieraDetConfig(
        hidden_size=sizes.widths[0],
        num_attention_heads=sizes.heads[0],
        image_size=[config.image_size, config.image_size],
        window_positional_embedding_background_size=list(sizes.position_grid),
        blocks_per_stage=list(sizes.blocks),
        embed_dim_per_stage=list(sizes.widths),
        num_attention_heads_per_stage=list(sizes.heads),
        window_size_per_stage=list(sizes.windows),
        global_attention_blocks=list(sizes.global_blocks),
    )
    vision = Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=list(reversed(sizes.widths)),
        backbone_feature_sizes=[[side, side], [side // 2, side // 2], [side // 4, side // 4]],
        fpn_hidden_size=channels,
    )
    prompts = Sam2PromptEncoderConfig(hidden_size=channels, image_size=config.image_size)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=channels,
        mlp_dim=sizes.decoder_mlp,
        num_attention_heads=sizes.decoder_heads,
        iou_head_hidden_dim=channels,
    )
    return Architecture(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
