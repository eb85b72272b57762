"""All samples of a row by one kernel: torch's variable-length attention, for bfloat16 on a GPU.

A call of it is causal throughout or not at all, so a row takes two: one for the blocks, one for what stands behind them. Each
gets its queries and their keys, one sample's behind the other's, and where each of them starts.

Shapes: R tokens of the row, D head_dim, Q query heads, K key/value heads; n reaches of one kind.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Reach(NamedTuple):
    """The tokens `queries` of a row see the tokens `keys`, which end with them: all of these or, where it is causal, each what
    stands before it and itself."""

    queries: range
    keys: range
    causal: bool


class Varlen:
    """All reaches of a row, which together are those of every token, in order."""

    def __init__(self, reaches: Sequence[Reach], device: torch.device):
        kinds = [[reach for reach in reaches if reach.causal is causal] for causal in (False, True)]
        self._kinds = [_Kind(kind, device) for kind in kinds if kind]
        self._order_R = torch.cat([kind.query_rows for kind in self._kinds]).argsort()

    def __call__(self, query_QRD: Tensor, key_KRD: Tensor, value_KRD: Tensor) -> Tensor:
        """(Q, R, D)."""
        parts = [part.transpose(0, 1) for part in (query_QRD, key_KRD, value_KRD)]
        mixed_RQD = torch.cat([kind(*parts) for kind in self._kinds])
        return mixed_RQD.index_select(0, self._order_R).transpose(0, 1)


def fits(query_QRD: Tensor) -> bool:
    """Whether the kernel takes these: it knows half precision alone, and heads of whole eights."""
    return query_QRD.is_cuda and query_QRD.dtype == torch.bfloat16 and query_QRD.shape[-1] % 8 == 0


class _Kind:
    """The reaches of one kind: the rows of their queries and of their keys, and where each reach starts among them."""

    def __init__(self, reaches: Sequence[Reach], device: torch.device):
        self._window = (-1, 0) if reaches[0].causal else (-1, -1)
        self.query_rows, self._query_starts, self._most_queries = _told([reach.queries for reach in reaches], device)
        self._key_rows, self._key_starts, self._most_keys = _told([reach.keys for reach in reaches], device)

    def __call__(self, query_RQD: Tensor, key_RKD: Tensor, value_RKD: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn  # takes a second, and nobody else needs it

        query = query_RQD.index_select(0, self.query_rows)
        key, value = (part.index_select(0, self._key_rows) for part in (key_RKD, value_RKD))
        starts, longest = (self._query_starts, self._key_starts), (self._most_queries, self._most_keys)
        return varlen_attn(query, key, value, *starts, *longest, window_size=self._window, enable_gqa=True)


def _told(ranges: Sequence[range], device: torch.device) -> tuple[Tensor, Tensor, int]:
    """The rows one behind the other, (n + 1,) where each range starts among them, and the longest range's length."""
    rows = torch.cat([torch.arange(each.start, each.stop, device=device) for each in ranges])
    starts = torch.tensor([0, *accumulate(map(len, ranges))], dtype=torch.int32, device=device)
    return rows, starts, max(map(len, ranges))
