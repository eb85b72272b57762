"""Who sees whom: tokens of one row that holds several samples, or one more token of each.

A sample may begin with a block, which sees all of itself and nothing behind it: of a Qwen student that is the picture,
`<vision>` and `</vision>` included; EVEv2 has none. Everything else sees what stands before it. So a sample is two plain
attentions, of the block with itself and of the rest with everything, and no mask of L x L is ever made; samples never meet.

Shapes: R tokens of all samples, B samples, T tokens so far, D head_dim, Q query heads, K key/value heads.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from student.sequence import Span


class Sight(Protocol):
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


class Whole:
    """Whole samples, one behind the other; with `past`, their keys and values are kept there."""

    def __init__(self, spans: Sequence[Span], device: torch.device, past: KeyValues | None = None):
        self._spans, self._past = spans, past
        self._looks = [look for number, span in enumerate(spans) for look in _looks(number, span, device)]

    def __call__(self, layer: int, query_QRD: Tensor, key_KRD: Tensor, value_KRD: Tensor) -> Tensor:
        if self._past is not None:
            self._past.begin(layer, self._spans, key_KRD, value_KRD)
        # Split, not sliced: the way back of a slice fills a tensor as large as the row. And fused kernels want a batch.
        queries = query_QRD[None].split([look.count for look in self._looks], dim=2)
        keys, values = (part[None].split([span.length for span in self._spans], dim=2) for part in (key_KRD, value_KRD))
        mixed = [
            attend(query, look.reached(keys), look.reached(values), look.seen)
            for query, look in zip(queries, self._looks, strict=True)
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


class _Look(NamedTuple):
    """`count` tokens of sample `number` that look at the first `reach` of it, where that is not None; each of them at what
    `seen` says, or at all of these."""

    number: int
    count: int
    reach: int | None
    seen: Tensor | None

    def reached(self, samples: Sequence[Tensor]) -> Tensor:
        whole = samples[self.number]
        return whole if self.reach is None else whole[:, :, : self.reach]


def _looks(number: int, span: Span, device: torch.device) -> Iterator[_Look]:
    """Those of one sample, in the order of its tokens."""
    text = span.length - span.block
    if span.block:
        yield _Look(number, span.block, span.block if text else None, None)
    if text:
        yield _Look(number, text, None, _up_to_itself(text, span.length, device))


def _up_to_itself(text: int, length: int, device: torch.device) -> Tensor:
    """(text, length): each of the last `text` tokens sees what stands before it. On a GPU it is said and not written down:
    the kernel that is fast there, and lets query heads share key heads, takes no mask."""
    if device.type == "cuda":
        return causal_lower_right(text, length)
    return torch.ones(text, length, dtype=torch.bool, device=device).tril(length - text)


def attend(query_BQLD: Tensor, key_BKTD: Tensor, value_BKTD: Tensor, seen: Tensor | None) -> Tensor:
    """(B, Q, L, D): softmax(q·k / √D) v over what may be seen; Q/K query heads share each key head."""
    parts, shared = (query_BQLD, key_BKTD, value_BKTD), query_BQLD.shape[1] // key_BKTD.shape[1]
    if query_BQLD.is_cpu and query_BQLD.dtype == torch.bfloat16 and query_BQLD.requires_grad:
        # On a CPU the fused kernel's way back takes twice as long in bf16, and products of matrices spelt out are compiled
        # anew for every length.
        with torch.autocast("cpu", enabled=False):
            return attend(*(part.float() for part in parts), seen).bfloat16()
    return F.scaled_dot_product_attention(*parts, attn_mask=seen, enable_gqa=shared > 1)


def _apart(x_KRD: Tensor, spans: Sequence[Span]) -> Tensor:
    """(B, K, T, D): the samples side by side, padded on the right."""
    pieces = [x_KRD[:, span.rows].transpose(0, 1) for span in spans]
    return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True).transpose(1, 2)
