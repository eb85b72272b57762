"""RADIO through transformers: the patches of its last block as a teacher.

The input follows the processor published with it: resized by Pillow (bicubic, bytes in, bytes out), then to 0..1; then to the
nearest size that its patches divide (bilinear). The network normalises by itself: mean and deviation lie among its weights.

    P tokens before the patches   h, w the input's sides over the patch size
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import RadioConfig as Architecture
from transformers import RadioModel
from transformers.models.radio.modeling_radio import RadioPatchEmbeddings

from schemas.errors import ConfigError, DataError
from teachers import pixels, weights
from teachers.radio.config import RadioConfig, RadioSizes

GAIN = 0.6
# Of a random network; with published weights both are read off their shapes.
RANDOM_PREFIX, RANDOM_SIDE = 4, 32
# Every published checkpoint bears the names of the original code, and so does what transformers saves.
ORIGINAL_TO_HF = [
    (r"^radio_model\.model\.patch_generator\.embedder\.", "embeddings.patch_projection."),
    (r"^radio_model\.model\.patch_generator\.pos_embed$", "embeddings.position_embedding"),
    (r"^radio_model\.model\.patch_generator\.cls_token\.token$", "embeddings.cls_register_token"),
    (r"^radio_model\.model\.blocks\.", "encoder.layer."),
    (r"^radio_model\.input_conditioner\.", "input_conditioner."),
    (r"^radio_model\.summary_idxs$", "summary_idxs"),
    (r"\.attn\.proj\.", ".attention.o_proj."),
]
# The summary is no feature; the normaliser of inner layers works on none that is read here; a frame's projection is for video.
SPARE = r"^summary_idxs$|inter_feature_normalizer\.|video_embedder\."
# Published networks have no layer scale, transformers' is one.
UNUSED = r"^summary_idxs$|layer_scale\d\.lambda1$"
# The original code names its transformer; the number of heads shows in no tensor.
HEADS = {"vit_base_patch16_224": 12, "vit_large_patch16_224": 16, "vit_huge_patch16_224": 16}


class RadioFeatures:
    """The spatial features; tokens before the patches (summaries, registers) are left out."""

    def __init__(self, config: RadioConfig, device: str = "cpu"):
        self._config, self._model = config, load(config).to(device)

    def prepare(self, image: np.ndarray) -> Tensor:
        return preprocess(image, self._config.shortest_edge, self._model.patch_size)[0]

    def maps(self, pixels_N3HW: Tensor) -> Tensor:
        h, w = (side // self._model.patch_size for side in pixels_N3HW.shape[2:])
        return self._model(pixels_N3HW).features.transpose(1, 2).unflatten(2, (h, w))


def preprocess(image: np.ndarray, shortest_edge: int, patch: int) -> Tensor:
    """(1, 3, height, width) in 0..1, both sides multiples of `patch`."""
    pixels.require_rgb(image)
    height, width = scaled(image.shape[0], image.shape[1], shortest_edge)
    unit_13HW = pixels.to_unit(np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)))
    return pixels.resize(unit_13HW, (nearest(height, patch), nearest(width, patch)))


def scaled(height: int, width: int, shortest_edge: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `shortest_edge`; 480 x 640 at 768 gives 768 x 1024."""
    long = int(shortest_edge * max(height, width) / min(height, width))
    return (shortest_edge, long) if height <= width else (long, shortest_edge)


def nearest(side: int, patch: int) -> int:
    """The multiple of `patch` nearest to `side`, at least one; a side halfway goes to the even multiple."""
    return max(round(side / patch) * patch, patch)


def load(config: RadioConfig) -> RadioModel:
    """The frozen network in float32 on the CPU."""
    if config.is_random and config.sizes is not None:
        plan = architecture(config.sizes, config.channels, prefix=RANDOM_PREFIX, side=RANDOM_SIDE)
        return weights.frozen(weights.seeded(lambda: _drawn(config, plan), config.seed, GAIN))
    return weights.frozen(_load_folder(config, weights.locate(config.weights, config.folder)))


def _drawn(config: RadioConfig, plan: Architecture) -> RadioModel:
    model = _built(config, plan)
    nn.init.normal_(model.embeddings.position_embedding)
    nn.init.normal_(model.embeddings.cls_register_token)
    return model


def _built(config: RadioConfig, plan: Architecture) -> RadioModel:
    model = RadioModel(plan)
    if config.aligned_corners:
        model.embeddings = AlignedEmbeddings(plan)
    return model


class AlignedEmbeddings(RadioPatchEmbeddings):
    """As transformers embeds patches, but for the table of positions: its corners lie on those of the grid."""

    def _interpolate_position_embedding(self, input_dims: tuple[int, int], dtype: torch.dtype) -> Tensor:
        table_1CSS = self.position_embedding.unflatten(1, (self.max_rows, self.max_cols)).permute(0, 3, 1, 2)
        side = max(input_dims)
        square = F.interpolate(table_1CSS.float(), size=(side, side), mode="bilinear", align_corners=True).to(dtype)
        return square[..., : input_dims[0], : input_dims[1]].flatten(2).transpose(1, 2)


def _load_folder(config: RadioConfig, folder: Path) -> RadioModel:
    content, state = weights.read_config(folder), from_original(weights.read_folder(folder))
    channels, sizes, prefix, side = shapes(state, heads(content, folder), folder)
    weights.require_architecture(config.identity(), {"channels": channels, "sizes": sizes.identity()}, folder)
    state.pop("summary_idxs", None)
    plan = architecture(sizes, channels, prefix=prefix, side=side)
    return weights.fitted(lambda: _built(config, plan), state, folder, spare=SPARE, unused=UNUSED)


def from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of transformers, the joint query, key and value projection cut into three."""
    named: dict[str, Tensor] = {}
    for name, tensor in weights.renamed(state, ORIGINAL_TO_HF).items():
        joint = re.search(r"\.attn\.qkv\.", name)
        parts = zip("qkv", tensor.chunk(3), strict=True) if joint else ()
        named |= {name.replace(".attn.qkv.", f".attention.{letter}_proj."): part for letter, part in parts}
        named |= {} if joint else {name: tensor}
    return named


def heads(content: dict[str, Any], folder: Path) -> int:
    """The number of attention heads, of a `config.json` of transformers or of the original code."""
    if content.get("model_type") == "radio":
        return Architecture(**content).num_attention_heads
    args = content.get("args")
    name = args.get("model") if isinstance(args, dict) else None
    if name not in HEADS:
        raise ConfigError(f"its transformer is {name}, known are {', '.join(HEADS)}", str(folder), "Use another RADIO.")
    return HEADS[name]


def shapes(state: dict[str, Tensor], attention_heads: int, folder: Path) -> tuple[int, RadioSizes, int, int]:
    """Channels, sizes, tokens before the patches and the side of the table of positions, as the tensors have them."""
    try:
        channels, patch_area = state["embeddings.patch_projection.weight"].shape
        mlp = state["encoder.layer.0.mlp.fc1.weight"].shape[0]
        prefix = state["embeddings.cls_register_token"].shape[0]
        positions = state["embeddings.position_embedding"].shape[1]
    except KeyError as error:
        raise DataError(f"the weights are not RADIO's: there is no {error}", str(folder)) from None
    blocks = len({name.split(".")[2] for name in state if name.startswith("encoder.layer.")})
    sizes = RadioSizes(blocks=blocks, heads=attention_heads, mlp=mlp, patch=math.isqrt(patch_area // 3))
    return channels, sizes, prefix, math.isqrt(positions)


def architecture(sizes: RadioSizes, channels: int, *, prefix: int, side: int) -> Architecture:
    """What transformers calls a network of these sizes; all tokens before the patches are one kind to it here."""
    return Architecture(
        hidden_size=channels,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        mlp_ratio=(sizes.mlp + 0.5) / channels,  # it takes the whole part of the product
        patch_size=sizes.patch,
        max_img_size=side * sizes.patch,
        num_cls_tokens=prefix,
        num_registers=0,
        summary_idxs=[0],
    )
