"""The variable-length path as a GPU takes it, torch's own op and its way back included: only the kernel at the bottom, which
a CPU does not have, is written out here in plain loops."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.library import _scoped_library
from torch.nn import functional as F

from student import sight, varlen
from student.model import PixelSail
from student.sequence import Span, collate
from student.sight import KeyValues, Whole, reaches
from student.training import blocks
from student.varlen import Varlen
from tests.student.eve.micro import EVE
from tests.student.micro import micro_config, micro_vocabulary, pointed, spoken
from tests.student.test_sight import CPU, ROWS, SPANS, TIGHT, dense

GPU = torch.device("cuda")


def pieces(query: Tensor, key: Tensor, starts: tuple[Tensor, Tensor], back: bool) -> Iterator[tuple[slice, slice, Tensor]]:
    """Of each look its queries, its keys and (Q, q, k) how much each query makes of each key: under `back` the last query sees
    the last key, and every one before it one less."""
    for (q0, q1), (k0, k1) in zip(*(pairwise(start.tolist()) for start in starts), strict=True):
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1]) / query.shape[2] ** 0.5
        for i in range(q1 - q0):
            if back:
                scores[:, i, k1 - k0 - (q1 - q0) + i + 1 :] = -torch.inf
        yield slice(q0, q1), slice(k0, k1), scores.softmax(dim=-1)


def shared(part: Tensor, query: Tensor) -> Tensor:
    """Keys or values, once for each query head that reads them."""
    return part.repeat_interleave(query.shape[1] // part.shape[1], dim=1)


@pytest.fixture
def calls() -> Iterator[list[bool]]:
    """Whether each call of the kernel looked back."""
    made = []

    def forward(query, key, value, starts_q, starts_k, most_q, most_k, dropout, back, *args, **options):
        assert (most_q, most_k) == tuple(int(starts.diff().max()) for starts in (starts_q, starts_k))
        assert starts_q.dtype == starts_k.dtype == torch.int32
        made.append(back)
        found, values = torch.empty_like(query), shared(value, query)
        for mine, theirs, share in pieces(query, shared(key, query), (starts_q, starts_k), back):
            found[mine] = torch.einsum("hqk,khd->qhd", share, values[theirs])
        return found, query.new_zeros(query.shape[1], len(query)), torch.zeros(2), torch.zeros(0), torch.zeros(0)

    def backward(ahead, query, key, value, out, sums, starts_q, starts_k, most_q, most_k, dropout, back, *args, **options):
        keys, values = shared(key, query), shared(value, query)
        of_query, of_keys, of_values = torch.zeros_like(query), torch.zeros_like(keys), torch.zeros_like(values)
        for mine, theirs, share in pieces(query, keys, (starts_q, starts_k), back):
            of_values[theirs] += torch.einsum("hqk,qhd->khd", share, ahead[mine])
            of_share = torch.einsum("qhd,khd->hqk", ahead[mine], values[theirs])
            of_scores = share * (of_share - (of_share * share).sum(dim=-1, keepdim=True)) / query.shape[2] ** 0.5
            of_query[mine] = torch.einsum("hqk,khd->qhd", of_scores, keys[theirs])
            of_keys[theirs] += torch.einsum("hqk,qhd->khd", of_scores, query[mine])
        back_again = (part.unflatten(1, (key.shape[1], -1)).sum(dim=2) for part in (of_keys, of_values))
        return of_query, *back_again

    with _scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", backward, "CPU")
        yield made


def row(kv_heads: int, rows: int = ROWS) -> list[Tensor]:
    return [torch.randn(heads, rows, 8, requires_grad=True) for heads in (4, kv_heads, kv_heads)]


def at_once(*spans: Span) -> Varlen:
    return Varlen([reach for span in spans for reach in reaches(span)], CPU)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_is_attention_with_the_dense_mask(calls: list[bool], kv_heads: int):
    parts, ahead = row(kv_heads), torch.randn(4, ROWS, 8)
    found = at_once(*SPANS)(*parts)
    assert sorted(calls) == [False, True]
    expected = F.scaled_dot_product_attention(*(part[None] for part in parts), attn_mask=dense(), enable_gqa=True)[0]
    torch.testing.assert_close(found, expected, **TIGHT)
    for one, other in zip(torch.autograd.grad(found, parts, ahead), torch.autograd.grad(expected, parts, ahead), strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


@pytest.mark.parametrize(("spans", "back"), [((Span(0, 4, 4), Span(4, 3, 3)), False), ((Span(0, 4, 0), Span(4, 3, 0)), True)])
def test_one_call_serves_samples_of_one_kind(calls: list[bool], spans: tuple[Span, ...], back: bool):
    parts = row(2, rows=7)
    torch.testing.assert_close(at_once(*spans)(*parts), Whole(spans, CPU)(0, *parts), **TIGHT)
    assert calls == [back]


@pytest.mark.parametrize("over", [{}, EVE], ids=["qwen", "eve"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_student_is_the_same_by_it(calls: list[bool], monkeypatch: pytest.MonkeyPatch, rng, over: dict, recompute: bool):
    config = micro_config(**over)
    batch = collate([pointed(rng, 32, 48, 2, config=config), spoken(config=config), pointed(rng, 48, 32, 1, config=config)])
    found = {}
    for way in ("one by one", "at once"):
        monkeypatch.setattr(sight, "fits", lambda query, way=way: way == "at once")
        student, past = PixelSail(config, micro_vocabulary(), torch.Generator().manual_seed(0)), KeyValues()
        with torch.no_grad():
            student.states(batch, past)
            new = student.next_states(torch.tensor([5, 6, 7]), torch.tensor([40, 41, 42]), past)
        if recompute:
            blocks.recompute(student.single_transformer.model.layers)
        hidden = student.states(batch)
        hidden.square().sum().backward()
        found[way] = hidden, new, [each.grad for each in student.parameters() if each.grad is not None]
    assert calls
    torch.testing.assert_close(found["at once"], found["one by one"], rtol=1e-4, atol=1e-4)


def test_a_gpu_takes_it_in_bfloat16_alone(monkeypatch: pytest.MonkeyPatch):
    taken = []
    monkeypatch.setattr(Varlen, "__call__", lambda self, *parts: taken.append(parts[0].dtype))
    monkeypatch.setattr(Whole, "_one_by_one", lambda self, *parts: None)
    with FakeTensorMode():
        for dtype, dim in ((torch.bfloat16, 8), (torch.bfloat16, 12), (torch.float32, 8)):
            Whole(SPANS, GPU)(0, *(torch.empty(2, ROWS, dim, dtype=dtype, device=GPU) for _ in range(3)))
    assert taken == [torch.bfloat16]


def test_torch_accepts_what_a_gpu_is_given():
    """Torch's op as it is, without a kernel: it refuses arguments that are not its own."""
    with FakeTensorMode():
        parts = [torch.empty(heads, ROWS, 64, dtype=torch.bfloat16, device=GPU) for heads in (14, 2, 2)]
        assert varlen.fits(parts[0])
        found = Whole(SPANS, GPU)(0, *parts)
        assert (found.shape, found.dtype, found.device.type) == ((14, ROWS, 64), torch.bfloat16, "cuda")
