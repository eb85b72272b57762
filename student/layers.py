"""The decoder's parts: RMSNorm, SwiGLU, two-axis rotary attention, and the mask that lets a picture see itself whole.

Shapes: B samples, L tokens, H hidden, D head_dim, Q query heads, K key/value heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from student.config import StudentConfig
from student.sequence import Batch

Rotary = tuple[Tensor, Tensor]  # cosines and sines, each (B, 1, L, D)


class RMSNorm(nn.Module):
    """Scale to unit root mean square, then by a learned weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BLH: Tensor) -> Tensor:
        return F.rms_norm(x_BLH, self.weight.shape, self.weight, self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), no biases."""

    def __init__(self, hidden: int, ffn: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, ffn, bias=False)
        self.up_proj = nn.Linear(hidden, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x_BLH: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BLH)) * self.up_proj(x_BLH))


def rotary(positions_3BL: Tensor, head_dim: int, theta: float) -> Rotary:
    """Cosines and sines of M-RoPE with sections [0, D/4, D/4]: rows turn the fast half of the channels, columns the slow.

    Channels 0 … D/4−1 follow the row axis, D/4 … D/2−1 the column axis, and the second half of D repeats the first; the
    time axis turns nothing. On text, where row = column, this is ordinary RoPE. Always fp32.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_3BL.device) / head_dim
    rows, columns = (theta**-exponents).chunk(2)
    _, row_BL, column_BL = positions_3BL.float()
    quarter_BLD = torch.cat((row_BL[..., None] * rows, column_BL[..., None] * columns), dim=-1)
    angles_BLD = torch.cat((quarter_BLD, quarter_BLD), dim=-1)[:, None]
    return angles_BLD.cos(), angles_BLD.sin()


def rotate(x_BQLD: Tensor, turn: Rotary) -> Tensor:
    """`x` turned by its positions; channel i is paired with channel i + D/2."""
    cosine, sine = (part.to(x_BQLD.dtype) for part in turn)
    first, second = x_BQLD.chunk(2, dim=-1)
    return x_BQLD * cosine + torch.cat((-second, first), dim=-1) * sine


class KeyValues:
    """The keys and values of every layer so far, for generation: a layer adds its new ones and gets all of them."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, key_BKLD: Tensor, value_BKLD: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self._layers:
            key, value = self._layers[layer]
            key_BKLD, value_BKLD = torch.cat((key, key_BKLD), dim=2), torch.cat((value, value_BKLD), dim=2)
        self._layers[layer] = key_BKLD, value_BKLD
        return key_BKLD, value_BKLD


def attend(query_BQLD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, seen: Tensor | None) -> Tensor:
    """(B, Q, L, D): softmax(q·k / √D) v over what may be seen; Q/K query heads share each key head."""
    shared = query_BQLD.shape[1] // key_BKTD.shape[1]
    if not (query_BQLD.is_cpu and query_BQLD.dtype == torch.bfloat16 and query_BQLD.requires_grad):
        return F.scaled_dot_product_attention(query_BQLD, key_BKTD, value_BKTD, attn_mask=seen, enable_gqa=shared > 1)
    # Spelt out where the fused kernel is slow: on a CPU its bf16 backward takes three times as long as this.
    if shared > 1:
        key_BKTD, value_BKTD = (part.repeat_interleave(shared, dim=1) for part in (key_BKTD, value_BKTD))
    scores_BQLT = (query_BQLD * query_BQLD.shape[-1] ** -0.5) @ key_BKTD.transpose(-1, -2)
    if seen is not None:
        scores_BQLT = scores_BQLT + torch.zeros_like(seen, dtype=scores_BQLT.dtype).masked_fill(~seen, -torch.inf)
    return scores_BQLT.softmax(dim=-1) @ value_BKTD


class Attention(nn.Module):
    """Grouped-query attention: biases on q, k and v, none on the output."""

    def __init__(self, config: StudentConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        wide, narrow = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden, wide)
        self.k_proj = nn.Linear(config.hidden, narrow)
        self.v_proj = nn.Linear(config.hidden, narrow)
        self.o_proj = nn.Linear(wide, config.hidden, bias=False)

    def forward(self, x_BLH: Tensor, turn: Rotary, seen: Tensor | None, past: KeyValues | None) -> Tensor:
        query, key = rotate(self._heads(self.q_proj(x_BLH)), turn), rotate(self._heads(self.k_proj(x_BLH)), turn)
        value = self._heads(self.v_proj(x_BLH))
        if past is not None:
            key, value = past.extend(self.layer, key, value)
        mixed_BQLD = attend(query, key, value, seen)
        return self.o_proj(mixed_BQLD.transpose(1, 2).flatten(2))

    def _heads(self, x_BLE: Tensor) -> Tensor:
        return x_BLE.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Block(nn.Module):
    """Attention and feed-forward, each on the normalised input and added to it."""

    def __init__(self, config: StudentConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = SwiGLU(config.hidden, config.ffn)

    def forward(self, x_BLH: Tensor, turn: Rotary, seen: Tensor | None, past: KeyValues | None) -> Tensor:
        x_BLH = x_BLH + self.self_attn(self.input_layernorm(x_BLH), turn, seen, past)
        return x_BLH + self.mlp(self.post_attention_layernorm(x_BLH))


def attention_mask(batch: Batch) -> Tensor:
    """(B, 1, L, L) bool, True where row i may look at column j.

    Causal, and the image block `<vision>` … `</vision>` sees all of itself, both ends included. Padding is seen by nobody
    but itself: a row without any True would be NaN in some attention kernels.
    """
    place_L = torch.arange(batch.tokens_BL.shape[1], device=batch.tokens_BL.device)
    patches_B = (batch.patch_index_BL >= 0).sum(dim=1)
    block_B = torch.where(patches_B > 0, patches_B + 2, 0)
    in_block_BL = place_L < block_B[:, None]
    causal_LL = place_L[:, None] >= place_L
    seen_BLL = causal_LL | (in_block_BL[:, :, None] & in_block_BL[:, None, :])
    real_BL = place_L < batch.lengths_B[:, None]
    seen_BLL = seen_BLL & real_BL[:, :, None] & real_BL[:, None, :]
    return (seen_BLL | (place_L[:, None] == place_L))[:, None]
