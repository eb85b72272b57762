"""SAM 2.1 through transformers: the three maps that the official predictor keeps of an image, one of them as a teacher.

The input follows the official transform, not the image processor of transformers: pixels to 0..1, squashed to a square
(bilinear, antialiased, as torchvision resizes a tensor), then normalised.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
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
from teachers import pixels, weights
from teachers.sam2 import names
from teachers.sam2.config import Layer, Sam2Config, Sam2Sizes

GAIN = 0.72
# The stages of Hiera that a map is made of: those up to this one.
LAST_STAGE: dict[Layer, int] = {"high_res_0": 0, "high_res_1": 1, "image_embed": 3}
# The levels of the pyramid that may hold something of a coarser one.
TOP_DOWN = [2, 3]


class Sam2Features:
    """The map that the config names; what it is not made of is not run."""

    def __init__(self, config: Sam2Config, device: str = "cpu"):
        self._config, self._model = config, load(config)
        hiera = self._model.vision_encoder.backbone
        hiera.blocks = hiera.blocks[: hiera.stage_ends[LAST_STAGE[config.layer]] + 1]
        self._model.to(device)

    def prepare(self, image: np.ndarray) -> Tensor:
        return preprocess(image, self._config.image_size)[0]

    def maps(self, pixels_N3HW: Tensor) -> Tensor:
        return level(self._model, stages(self._model, pixels_N3HW), self._config.layer)


def stages(model: Sam2Model, pixels_N3HW: Tensor) -> Sequence[Tensor]:
    """What each stage of Hiera gives, (N, h, w, C), the first at a quarter of the input, each other at half of the last."""
    return model.vision_encoder.backbone(pixels_N3HW).intermediate_hidden_states


def level(model: Sam2Model, stages_NhwC: Sequence[Tensor], layer: Layer) -> Tensor:
    """A map (N, C, h, w) of the official predictor: the finer two as the mask decoder takes them, the coarsest with the
    no-memory embedding."""
    match layer:
        case "high_res_0":
            return model.mask_decoder.conv_s0(_lateral(model, stages_NhwC, 0))
        case "high_res_1":
            return model.mask_decoder.conv_s1(_lateral(model, stages_NhwC, 1))
        case "image_embed":
            coarser = F.interpolate(_lateral(model, stages_NhwC, 3).float(), scale_factor=2.0, mode="nearest")
            # In half precision this sum is float32, as in the original; the pyramid of transformers rounds it.
            return _lateral(model, stages_NhwC, 2) + coarser + model.no_memory_embedding.view(1, -1, 1, 1)


def _lateral(model: Sam2Model, stages_NhwC: Sequence[Tensor], stage: int) -> Tensor:
    convs = model.vision_encoder.neck.convs
    return convs[len(convs) - 1 - stage](stages_NhwC[stage].permute(0, 3, 1, 2))


def preprocess(image: np.ndarray, image_size: int) -> Tensor:
    """(1, 3, image_size, image_size), squashed and normalised."""
    square = F.interpolate(
        pixels.to_unit(image), size=(image_size, image_size), mode="bilinear", align_corners=False, antialias=True
    )
    return pixels.normalise(square)


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
    plan, state = architecture(config, config.sizes), names.from_official(weights.read_official(path))
    return weights.fitted(lambda: Sam2Model(plan), state, path, spare=names.VIDEO_ONLY)


def _load_folder(config: Sam2Config, folder: Path) -> Sam2Model:
    content = weights.read_config(folder)
    # The published file describes the video model; these parts of it are the image model.
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    published = Architecture(**{part: content[part] for part in parts if part in content})
    found = {
        "channels": published.vision_config.fpn_hidden_size,
        "image_size": published.prompt_encoder_config.image_size,
        "sizes": sizes_of(published).identity(),
        "top_down": list(published.vision_config.fpn_top_down_levels),
    }
    weights.require_architecture(config.identity() | {"top_down": TOP_DOWN}, found, folder)
    return weights.fitted(lambda: Sam2Model(published), weights.read_folder(folder), folder, spare=names.VIDEO_ONLY)


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
