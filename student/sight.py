"""Who sees whom: tokens of one row that holds several samples, or one more token of each.

A sample's picture sees all of itself, `<vision>` and `</vision>` included, and nothing behind it; its text sees what stands
before it. So a sample is two plain attentions, of the block with itself and of the rest with everything, and no mask of
L x L is ever made; samples never meet.

Shapes: R tokens of all samples, B samples, T tokens so far, D head_dim, Q query heads, K key/value heads.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from student.sequence import Span


class Sight(Protocol):
    def __call__(self, layer: int, query_QRD: Tensor, key_KRD: Tensor, value_KRD: Tensor) -> Tensor:
        """(Q, R, D): what the tokens see in layer `layer`."""
        ...


class KeyValues:
    """The keys and values of every layer so far, each (B, K, T, D), for generation. Prompts are padded on the right, and what
    comes after them stands behind the padding: `seen_BT` says what is there."""

    def __init__(self) -> None:
        self.seen_BT = torch.zeros(0, 0, dtype=torch.bool)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, layer: int, spans: Sequence[Span], key_KRD: Tensor, value_KRD: Tensor) -> None:
        self._layers[layer] = _apart(key_KRD, spans), _apart(value_KRD, spans)
        place_T = torch.arange(max(span.length for span in spans), device=key_KRD.device)
        self.seen_BT = place_T < torch.tensor([[span.length] for span in spans], device=key_KRD.device)

    def make_room(self) -> None:
        """For one more token of each sample."""
        self.seen_BT = F.pad(self.seen_BT, (0, 1), value=True)

    def extend(self, layer: int, key_BK1D: Tensor, value_BK1D: Tensor) -> tuple[Tensor, Tensor]:
        """All of the layer, with the new."""
        key, value = self._layers[layer]
        self._layers[layer] = torch.cat((key, key_BK1D), dim=2), torch.cat((value, value_BK1D), dim=2)
        return self._layers[layer]


class Whole:
    """Whole samples, one behind the other; with `past`, their keys and values are kept there."""

    def __init__(self, spans: Sequence[Span], device: torch.device, past: KeyValues | None = None):
        self._spans, self._past = spans, past
        self._looks = [look for span in spans for look in _looks(span, device)]

    def __call__(self, layer: int, query_QRD: Tensor, key_KRD: Tensor, value_KRD: Tensor) -> Tensor:
        if self._past is not None:
            self._past.begin(layer, self._spans, key_KRD, value_KRD)
        return torch.cat([attend(query_QRD[:, q], key_KRD[:, k], value_KRD[:, k], seen) for q, k, seen in self._looks], dim=1)


class Next:
    """One more token of each sample: it sees all that is kept of its own, and itself."""

    def __init__(self, past: KeyValues):
        self._past = past
        past.make_room()

    def __call__(self, layer: int, query_QRD: Tensor, key_KRD: Tensor, value_KRD: Tensor) -> Tensor:
        query, key, value = (part.transpose(0, 1)[:, :, None] for part in (query_QRD, key_KRD, value_KRD))
        mixed_BQ1D = attend(query, *self._past.extend(layer, key, value), self._past.seen_BT[:, None, None])
        return mixed_BQ1D[:, :, 0].transpose(0, 1)


def _looks(span: Span, device: torch.device) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """(who looks, at whom, which of those each may see) of one sample; None is all."""
    text = span.length - span.block
    begin, border, end = span.start, span.start + span.block, span.start + span.length
    if span.block:
        yield slice(begin, border), slice(begin, border), None
    if text:
        seen = torch.ones(text, span.length, dtype=torch.bool, device=device).tril(span.block)
        yield slice(border, end), slice(begin, end), seen


def attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
    """(..., Q, L, D): softmax(q·k / √D) v over what may be seen; Q/K query heads share each key head."""
    shared = query.shape[-3] // key.shape[-3]
    if not (query.is_cpu and query.dtype == torch.bfloat16 and query.requires_grad):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=shared > 1)
    # Spelt out where the fused kernel is slow: on a CPU its bf16 backward takes three times as long as this.
    if shared > 1:
        key, value = (part.repeat_interleave(shared, dim=-3) for part in (key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if seen is not None:
        scores = scores + torch.zeros_like(seen, dtype=scores.dtype).masked_fill(~seen, -torch.inf)
    return scores.softmax(dim=-1) @ value


def _apart(x_KRD: Tensor, spans: Sequence[Span]) -> Tensor:
    """(B, K, T, D): the samples side by side, padded on the right."""
    pieces = [x_KRD[:, span.rows].transpose(0, 1) for span in spans]
    return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True).transpose(1, 2)
