"""The tensors of the official SAM 2 checkpoints under the names of transformers."""

import torch
from torch import Tensor

from teachers.weights import renamed

MLP3 = r"(iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+)\.layers"
OFFICIAL_TO_HF = [
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^image_encoder\.neck\.", "vision_encoder.neck."),
    (r"^sam_prompt_encoder\.", "prompt_encoder."),
    (r"^sam_mask_decoder\.", "mask_decoder."),
    (r"^no_mem_embed$", "no_memory_embedding"),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"neck\.convs\.(\d+)\.conv\.", r"neck.convs.\1."),
    (r"pe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"\.out_proj\.", ".o_proj."),
    (rf"{MLP3}\.0\.", r"\1.proj_in."),
    (rf"{MLP3}\.1\.", r"\1.layers.0."),
    (rf"{MLP3}\.2\.", r"\1.proj_out."),
    (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
    (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
]
# Memory and object pointers, under the names of both; the image model has no use for them.
VIDEO_ONLY = (
    r"^(memory_|maskmem_tpos_enc|mask_downsample\.|obj_ptr_|no_obj_|no_mem_pos_enc|object_pointer_proj\.|no_object_pointer|"
    r"no_memory_positional_encoding|temporal_positional_encoding_projection_layer\.|occlusion_spatial_embedding_parameter)"
)


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image model's tensors under the names of transformers."""
    named = renamed(state, OFFICIAL_TO_HF)
    points = [f"prompt_encoder.point_embeddings.{index}.weight" for index in range(4)]
    if all(name in named for name in points):
        named["prompt_encoder.point_embed.weight"] = torch.cat([named.pop(name) for name in points])
    position = "shared_embedding.positional_embedding"
    if f"prompt_encoder.{position}" in named:
        named["shared_image_embedding.positional_embedding"] = named[f"prompt_encoder.{position}"]
    return named
