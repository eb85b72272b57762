"""Who sees whom: tokens of one row that holds several samples, or one more token of each.

A sample may begin with a block, which sees all of itself and nothing behind it: of a Qwen student that is the picture,
`<vision>` and `</vision>` included; EVEv2 has none. Everything else sees what stands before it. So a sample is two plain
attentions, of the block with itself and of the rest with everything, and no mask of L x L is made; samples never meet.
A GPU in bfloat16 takes those of all samples at once (varlen.py).

Shapes: R tokens of all samples, B samples, T tokens so far, D head_dim, Q query heads, K key/value heads.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from student.sequence import Span
from student.varlen import Reach, Varlen, fits


class Sights(Protocol):
    """Who sees whom, in every layer."""

    def __call__(self, layer: int, query_QRD: Tensor, key_KRD: Tensor, value_KRD: Tensor) -> Tensor:
        """(Q, R, D): what the tokens see in layer `layer`."""
        ...


class KeyValues:
    """The keys and values of every layer so far, each (B, K, T, D), for generation. Prompts are padded on the right, and what
    comes after them stands behind the padding: `seen_BT` says what is there.

    They lie in memory with room behind them, which is doubled when it is full: a new token is written there, and what came
    before it stays in its place.
    """

    def __init__(self, room: int = 32) -> None:
        self.seen_BT = torch.zeros(0, 0, dtype=torch.bool)
        self._room = room
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, layer: int, spans: Sequence[Span], key_KRD: Tensor, value_KRD: Tensor) -> None:
        self._layers[layer] = tuple(F.pad(_apart(part, spans), (0, 0, 0, self._room)) for part in (key_KRD, value_KRD))
        place_T = torch.arange(max(span.length for span in spans), device=key_KRD.device)
        self.seen_BT = place_T < torch.tensor([[span.length] for span in spans], device=key_KRD.device)

    def make_room(self) -> None:
        """For one more token of each sample."""
        self.seen_BT = F.pad(self.seen_BT, (0, 1), value=True)
        if self.seen_BT.shape[1] > self._layers[0][0].shape[2]:
            grow = (0, 0, 0, self._room)
            self._layers = {layer: (F.pad(key, grow), F.pad(value, grow)) for layer, (key, value) in self._layers.items()}
            self._room *= 2

    def extend(self, layer: int, key_BKD: Tensor, value_BKD: Tensor) -> tuple[Tensor, Tensor]:
        """All of the layer, with the new at its end."""
        count = self.seen_BT.shape[1]
        for kept, new in zip(self._layers[layer], (key_BKD, value_BKD), strict=True):
            kept[:, :, count - 1] = new
        key, value = self._layers[layer]
        return key[:, :, :count], value[:, :, :count]

    def keep(self, chosen: Sequence[int]) -> None:
        """Only these samples, in this order."""
        rows = torch.tensor(chosen, device=self.seen_BT.device)
        self.seen_BT = self.seen_BT[rows]
        self._layers = {layer: (key[rows], value[rows]) for layer, (key, value) in self._layers.items()}


def reaches(span: Span) -> Iterator[Reach]:
    """Those of one sample, in the order of its tokens."""
    after, end = span.start + span.block, span.start + span.length
    if span.block:
        yield Reach(range(span.start, after), range(span.start, after), causal=False)
    if after < end:
        yield Reach(range(after, end), range(span.start, end), causal=True)


class Whole:
    """Whole samples, one behind the other; with `past`, their keys and values are kept there."""

    def __init__(self, spans: Sequence[Span], device: torch.device, past: KeyValues | None = None):
        self._spans, self._past = spans, past
        self._reaches = [(number, reach) for number, span in enumerate(spans) for reach in reaches(span)]
        self._device = device

    def __call__(self, layer: int, query_QRD: Tensor, key_KRD: Tensor, value_KRD: Tensor) -> Tensor:
        parts = (query_QRD, key_KRD, value_KRD)
        if self._past is not None:
            self._past.begin(layer, self._spans, key_KRD, value_KRD)
        if fits(query_QRD):
            return self._at_once(*parts)
        return self._one_by_one(*parts)

    @cached_property
    def _at_once(self) -> Varlen:
        return Varlen([reach for _, reach in self._reaches], self._device)

    @cached_property
    def _seen(self) -> list[Tensor | None]:
        return [_up_to_itself(reach, self._device) for _, reach in self._reaches]

    def _one_by_one(self, query_QRD: Tensor, key_KRD: Tensor, value_KRD: Tensor) -> Tensor:
        # Split, not sliced: the way back of a slice fills a tensor as large as the row. And fused kernels want a batch.
        queries = query_QRD[None].split([len(reach.queries) for _, reach in self._reaches], dim=2)
        keys, values = (part[None].split([span.length for span in self._spans], dim=2) for part in (key_KRD, value_KRD))
        mixed = [
            attend(query, *(_first(part[number], len(reach.keys)) for part in (keys, values)), seen, causal=reach.causal)
            for query, (number, reach), seen in zip(queries, self._reaches, self._seen, strict=True)
        ]
        return torch.cat(mixed, dim=2)[0]


class Next:
    """One more token of each sample: it sees all that is kept of its own, and itself."""

    def __init__(self, past: KeyValues):
        self._past = past
        past.make_room()

    def __call__(self, layer: int, query_QRD: Tensor, key_KRD: Tensor, value_KRD: Tensor) -> Tensor:
        query_BQ1D = query_QRD.transpose(0, 1)[:, :, None]
        seen = self._past.extend(layer, key_KRD.transpose(0, 1), value_KRD.transpose(0, 1))
        mixed_BQ1D = attend(query_BQ1D, *seen, self._past.seen_BT[:, None, None])
        return mixed_BQ1D[:, :, 0].transpose(0, 1)


def _up_to_itself(reach: Reach, device: torch.device) -> Tensor | None:
    """(queries, keys): each sees what stands before it; None where all are seen, or `causal` says it: where a sample has no
    block. On a GPU it is said and not written down: its fast kernels take no mask."""
    shape = len(reach.queries), len(reach.keys)
    if not reach.causal or shape[0] == shape[1]:
        return None
    if device.type == "cuda":
        return causal_lower_right(*shape)
    return torch.ones(shape, dtype=torch.bool, device=device).tril(shape[1] - shape[0])


def _first(sample_1KTD: Tensor, count: int) -> Tensor:
    return sample_1KTD if sample_1KTD.shape[2] == count else sample_1KTD[:, :, :count]


def attend(
    query_BQLD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, seen: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """(B, Q, L, D): softmax(q·k / √D) v over what may be seen; Q/K query heads share each key head. causal: where `seen` does
    not say it, each sees what stands before it and itself, of as many keys as queries."""
    parts, shared = (query_BQLD, key_BKTD, value_BKTD), query_BQLD.shape[1] // key_BKTD.shape[1]
    if query_BQLD.is_cpu and query_BQLD.dtype == torch.bfloat16 and query_BQLD.requires_grad:
        # On a CPU the fused kernel's way back takes twice as long in bf16, and products of matrices spelt out are compiled
        # anew for every length.
        with torch.autocast("cpu", enabled=False):
            return attend(*(part.float() for part in parts), seen, causal=causal).bfloat16()
    if query_BQLD.is_cuda and query_BQLD.dtype == torch.float32 and shared > 1:  # no fused kernel for these shares key heads
        parts, shared = (query_BQLD, *(part.repeat_interleave(shared, dim=1) for part in parts[1:])), 1
    return F.scaled_dot_product_attention(*parts, attn_mask=seen, is_causal=causal and seen is None, enable_gqa=shared > 1)


def _apart(x_KRD: Tensor, spans: Sequence[Span]) -> Tensor:
    """(B, K, T, D): the samples side by side, padded on the right."""
    pieces = [x_KRD[:, span.rows].transpose(0, 1) for span in spans]
    return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True).transpose(1, 2)
