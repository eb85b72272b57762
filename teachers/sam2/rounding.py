"""The mask decoder of transformers, made to round as the original: some of its sums are done in another order.

That moves logits by about 1e-6, and with them now and then a pixel of a mask, or the order of two regions.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (N, C, h, w), written out as in the original; torch's fused one rounds otherwise."""

    def __init__(self, norm: nn.LayerNorm):
        super().__init__()
        self.norm = norm

    def forward(self, x_NChw: Tensor) -> Tensor:
        centred = x_NChw - x_NChw.mean(1, keepdim=True)
        unit = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + self.norm.eps)
        return self.norm.weight[:, None, None] * unit + self.norm.bias[:, None, None]


def round_as_original(decoder: Sam2MaskDecoder) -> None:
    """Changes the decoder in place."""
    decoder.upscale_layer_norm = ChannelNorm(decoder.upscale_layer_norm)
    for mlp in (decoder.iou_prediction_head, *decoder.output_hypernetworks_mlps):
        mlp.register_forward_pre_hook(_dense)
    decoder.transformer.register_forward_pre_hook(_channels_last, with_kwargs=True)


def _dense(mlp: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Given a slice of a tensor, torch adds a bias in a second step, and rounds twice."""
    return tuple(arg.contiguous() for arg in args)


def _channels_last(transformer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """For a single object the original hands its map on as it lies in memory, by pixels; for several it makes copies."""
    images_NChw = kwargs["image_embeddings"]
    if len(images_NChw) == 1:
        kwargs |= {"image_embeddings": images_NChw.contiguous(memory_format=torch.channels_last)}
    return args, kwargs
