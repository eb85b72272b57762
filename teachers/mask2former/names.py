"""What Mask2Former's tensors are called: by Hugging Face, by the authors, and in the network here."""

import re

from torch import Tensor

from teachers import weights

# transformers 5 renamed Swin's parts; the published folders keep the older names.
PUBLISHED = [
    (r"(pixel_level_module\.encoder)\.(encoder\.layers|embeddings)\.", r"\1.swin.\2."),
    (r"attention\.self\.(q|k|v)(uery|ey|alue)\.", r"attention.\1_proj."),
    (r"attention\.self\.relative_position_bias_table$", "attention.relative_position_bias.relative_position_bias_table"),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"intermediate\.dense\.", "mlp.fc1."),
    (r"output\.dense\.", "mlp.fc2."),
]

BACKBONE, DECODER = "model.pixel_level_module.encoder.", "model.pixel_level_module.decoder."
QUERIES = "model.transformer_module."

# The authors renamed two parts of the head after they had published it; their own loader does the same.
LEGACY = [
    (r"^sem_seg_head\.(?!predictor\.|pixel_decoder\.)", "sem_seg_head.pixel_decoder."),
    (r"\.static_query\.", ".query_feat."),
]
SWIN = [
    (r"^backbone\.patch_embed\.proj\.", f"{BACKBONE}swin.embeddings.patch_embeddings.projection."),
    (r"^backbone\.patch_embed\.norm\.", f"{BACKBONE}swin.embeddings.norm."),
    *[(rf"^backbone\.norm{stage}\.", f"{BACKBONE}hidden_states_norms.stage{stage + 1}.") for stage in range(4)],
    (r"^backbone\.layers\.", f"{BACKBONE}swin.encoder.layers."),
    (r"\.attn\.relative_position_bias_table$", ".attention.relative_position_bias.relative_position_bias_table"),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.qkv\.", ".attention.qkv."),
    (r"(\.blocks\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"(\.blocks\.\d+)\.norm2\.", r"\1.layernorm_after."),
]
RESNET = [
    (r"^(backbone\..*(?:conv\d|shortcut))\.norm\.", r"\1.normalization."),
    (r"^(backbone\..*(?:conv\d|shortcut))\.weight$", r"\1.convolution.weight"),
    (r"^backbone\.stem\.conv1\.", f"{BACKBONE}embedder.embedder."),
    *[(rf"^backbone\.res{stage + 2}\.(\d+)\.", rf"{BACKBONE}encoder.stages.{stage}.layers.\1.") for stage in range(4)],
    *[(rf"(\.stages\.\d\.layers\.\d+)\.conv{conv}\.", rf"\1.layer.{conv - 1}.") for conv in (1, 2, 3)],
]
PIXEL_DECODER = [
    (r"^sem_seg_head\.pixel_decoder\.(transformer\.)?", DECODER),
    (r"(decoder\.(?:adapter|layer)_\d)\.norm\.", r"\1.1."),
    (r"(decoder\.(?:adapter|layer)_\d)\.weight$", r"\1.0.weight"),
    (r"decoder\.input_proj\.", "decoder.input_projections."),
    (r"decoder\.mask_features\.", "decoder.mask_projection."),
    (r"(decoder\.encoder\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(decoder\.encoder\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"\.linear(1|2)\.", r".fc\1."),
]
QUERY_DECODER = [
    (r"^sem_seg_head\.predictor\.class_embed\.", "class_predictor."),
    (r"^sem_seg_head\.predictor\.query_embed\.", f"{QUERIES}queries_embedder."),
    (r"^sem_seg_head\.predictor\.query_feat\.", f"{QUERIES}queries_features."),
    (r"^sem_seg_head\.predictor\.level_embed\.", f"{QUERIES}level_embed."),
    (r"^sem_seg_head\.predictor\.decoder_norm\.", f"{QUERIES}decoder.layernorm."),
    (r"^sem_seg_head\.predictor\.mask_embed\.layers\.(\d)\.", rf"{QUERIES}decoder.mask_predictor.mask_embedder.\1.0."),
    (r"\.transformer_self_attention_layers\.(\d+)\.norm\.", r".layers.\1.self_attn_layer_norm."),
    (r"\.transformer_cross_attention_layers\.(\d+)\.norm\.", r".layers.\1.cross_attn_layer_norm."),
    (r"\.transformer_ffn_layers\.(\d+)\.norm\.", r".layers.\1.final_layer_norm."),
    (r"\.transformer_(?:self_attention|cross_attention|ffn)_layers\.", ".layers."),
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"^sem_seg_head\.predictor\.layers\.", f"{QUERIES}decoder.layers."),
]
# One tensor of queries, keys and values over each other, for the authors; three, here.
STACKED = re.compile(r"(?:(.*\.attention\.)qkv\.|(.*\.self_attn\.)in_proj_)(weight|bias)$")


def current(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an original checkpoint under the names that the authors' code gives them today."""
    return weights.renamed(state, LEGACY)


def from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an original checkpoint under the names of the network here."""
    named: dict[str, Tensor] = {}
    for name, tensor in weights.renamed(current(state), [*SWIN, *RESNET, *PIXEL_DECODER, *QUERY_DECODER]).items():
        if (found := STACKED.match(name)) is None:
            named[name] = tensor
            continue
        prefix, kind = found[1] or found[2], found[3]
        named |= {f"{prefix}{part}_proj.{kind}": third for part, third in zip("qkv", tensor.chunk(3), strict=True)}
    return named
