"""The decoder's parts: RMSNorm, SwiGLU and two-axis rotary attention. Who sees whom is told from outside (sight.py), and no
part knows which layer it is: all blocks are then one to a compiler.

Shapes: R tokens of all samples, H hidden, D head_dim, Q query heads, K key/value heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from student.config import StudentConfig

Rotary = tuple[Tensor, Tensor]  # cosines and sines, each (R, D)
Sight = Callable[[Tensor, Tensor, Tensor], Tensor]  # (Q, R, D) of one layer's queries (Q, R, D), keys and values (K, R, D)


class RMSNorm(nn.Module):
    """Scale to unit root mean square, then by a learned weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_RH: Tensor) -> Tensor:
        return F.rms_norm(x_RH, self.weight.shape, self.weight, self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), no biases."""

    def __init__(self, hidden: int, ffn: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, ffn, bias=False)
        self.up_proj = nn.Linear(hidden, ffn, bias=False)
        self.down_proj = nn.Linear(ffn, hidden, bias=False)

    def forward(self, x_RH: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_RH)) * self.up_proj(x_RH))


def rotary(positions_3R: Tensor, head_dim: int, theta: float) -> Rotary:
    """Cosines and sines of M-RoPE with sections [0, D/4, D/4]: rows turn the fast half of the channels, columns the slow.

    Channels 0 … D/4−1 follow the row axis, D/4 … D/2−1 the column axis, and the second half of D repeats the first; the
    time axis turns nothing. On text, where row = column, this is ordinary RoPE. Always fp32.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_3R.device) / head_dim
    fast, slow = (theta**-exponents).chunk(2)
    _, row_R, column_R = positions_3R.float()
    half_RD = torch.cat((row_R[:, None] * fast, column_R[:, None] * slow), dim=-1)
    angles_RD = torch.cat((half_RD, half_RD), dim=-1)
    return angles_RD.cos(), angles_RD.sin()


def rotate(x_QRD: Tensor, turn: Rotary) -> Tensor:
    """`x` turned by its positions; channel i is paired with channel i + D/2."""
    cosine, sine = (part.to(x_QRD.dtype) for part in turn)
    first, second = x_QRD.chunk(2, dim=-1)
    return x_QRD * cosine + torch.cat((-second, first), dim=-1) * sine


def heads(x_RE: Tensor, head_dim: int) -> Tensor:
    """(heads, R, D)."""
    return x_RE.unflatten(-1, (-1, head_dim)).transpose(0, 1)


def merged(mixed_QRD: Tensor) -> Tensor:
    """(R, Q · D): what all heads of a token have found."""
    return mixed_QRD.transpose(0, 1).flatten(1)


def looked_up(table_KH: Tensor, number_R: Tensor) -> Tensor:
    """(R, H): row k of the table where the number is k, and zero where it is negative."""
    return F.embedding(torch.where(number_R < 0, len(table_KH), number_R), F.pad(table_KH, (0, 0, 0, 1)))


def projections(config: StudentConfig) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    """To queries, keys and values, with biases, and from what attention finds, without."""
    wide, narrow = config.heads * config.head_dim, config.kv_heads * config.head_dim
    query, key, value = nn.Linear(config.hidden, wide), nn.Linear(config.hidden, narrow), nn.Linear(config.hidden, narrow)
    return query, key, value, nn.Linear(wide, config.hidden, bias=False)


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = projections(config)

    def forward(self, x_RH: Tensor, turn: Rotary, sight: Sight) -> Tensor:
        parts = (part(x_RH) for part in (self.q_proj, self.k_proj, self.v_proj))
        query, key, value = (heads(part_RE, self.head_dim) for part_RE in parts)
        return self.o_proj(merged(sight(rotate(query, turn), rotate(key, turn), value)))

    def queries_and_keys(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """The projections whose products say who looks at whom."""
        return [(self.q_proj, self.k_proj)]


class Block(nn.Module):
    """Attention and feed-forward, each on the normalised input and added to it."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = SwiGLU(config.hidden, config.ffn)

    def forward(self, x_RH: Tensor, turn: Rotary, sight: Sight) -> Tensor:
        x_RH = x_RH + self.self_attn(self.input_layernorm(x_RH), turn, sight)
        return x_RH + self.mlp(self.post_attention_layernorm(x_RH))
