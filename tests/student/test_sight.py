import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from student.sequence import Span
from student.sight import KeyValues, Next, Whole, attend

SPANS = (Span(0, 9, 5), Span(9, 4, 0), Span(13, 6, 6), Span(19, 1, 0), Span(20, 7, 3))
ROWS = 27
CPU = torch.device("cpu")
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def dense() -> torch.Tensor:
    """(R, R), True where row i may look at column j: written out from the rule, pair by pair."""
    seen = torch.zeros(ROWS, ROWS, dtype=torch.bool)
    for span in SPANS:
        for i, j in np.ndindex(span.length, span.length):
            seen[span.start + i, span.start + j] = j <= i or max(i, j) < span.block
    return seen


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_is_attention_with_the_dense_mask(generator, kv_heads):
    parts = [torch.randn(heads, ROWS, 8, generator=generator, requires_grad=True) for heads in (4, kv_heads, kv_heads)]
    ahead = torch.randn(4, ROWS, 8, generator=generator)
    found = Whole(SPANS, CPU)(0, *parts)
    expected = F.scaled_dot_product_attention(*(part[None] for part in parts), attn_mask=dense(), enable_gqa=True)[0]
    torch.testing.assert_close(found, expected, **TIGHT)
    for one, other in zip(torch.autograd.grad(found, parts, ahead), torch.autograd.grad(expected, parts, ahead), strict=True):
        torch.testing.assert_close(one, other, **TIGHT)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_is_the_same_on_a_gpu(generator, dtype):
    parts = [torch.randn(heads, ROWS, 64, generator=generator).to(dtype) for heads in (4, 2, 2)]
    here = [part.float().requires_grad_() for part in parts]
    there = [part.cuda().requires_grad_() for part in parts]
    ahead = torch.randn(4, ROWS, 64, generator=generator)
    expected, found = Whole(SPANS, CPU)(0, *here), Whole(SPANS, torch.device("cuda"))(0, *there)
    near = TIGHT if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(found.float().cpu(), expected, **near)
    pairs = zip(
        torch.autograd.grad(found, there, ahead.cuda().to(dtype)), torch.autograd.grad(expected, here, ahead), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one.float().cpu(), other, **near)


def test_what_a_gpu_is_told_is_the_mask():
    for text, length in ((4, 9), (5, 5), (1, 7)):
        written = torch.ones(text, length, dtype=torch.bool).tril(length - text)
        query, key, value = (torch.randn(1, 1, rows, 8) for rows in (text, length, length))
        told = attend(query, key, value, causal_lower_right(text, length))
        torch.testing.assert_close(told, attend(query, key, value, written), **TIGHT)


def test_no_mask_of_a_whole_sample_is_made():
    sight = Whole((Span(0, 800, 0), Span(800, 300, 280), Span(1100, 7, 7)), CPU)
    assert [seen if seen is None else tuple(seen.shape) for seen in sight._seen] == [None, None, (20, 300), None]


def test_samples_do_not_see_each_other(generator):
    parts = [torch.randn(2, ROWS, 8, generator=generator) for _ in range(3)]
    before = Whole(SPANS, CPU)(0, *parts)
    changed = [part.clone() for part in parts]
    for part in changed:
        part[:, 9:13] += 1
    moved = (Whole(SPANS, CPU)(0, *changed) != before).any(dim=0).any(dim=-1)
    assert moved.nonzero()[:, 0].tolist() == [9, 10, 11, 12]


def test_one_more_token_sees_its_own_sample_and_no_padding(generator):
    query, key, value = (torch.randn(2, ROWS, 8, generator=generator) for _ in range(3))
    past = KeyValues()
    Whole(SPANS, CPU, past)(0, query, key, value)
    new = [torch.randn(2, len(SPANS), 8, generator=generator) for _ in range(3)]
    found = Next(past)(0, *new)
    for b, span in enumerate(SPANS):
        keys, values = (
            torch.cat((old[:, span.rows], more[:, b : b + 1]), dim=1) for old, more in ((key, new[1]), (value, new[2]))
        )
        expected = F.scaled_dot_product_attention(new[0][:, b : b + 1], keys, values)
        torch.testing.assert_close(found[:, b : b + 1], expected, **TIGHT)


def test_samples_leave_and_room_is_made_while_the_others_go_on(generator):
    """Room for one token at a time, doubled as it fills; after the second token only samples 3 and 1 stay."""
    query, key, value = (torch.randn(2, ROWS, 8, generator=generator) for _ in range(3))
    past, rows = KeyValues(room=1), list(range(len(SPANS)))
    Whole(SPANS, CPU, past)(0, query, key, value)
    seen = [(key[:, span.rows], value[:, span.rows]) for span in SPANS]
    for step in range(5):
        if step == 2:
            past.keep([3, 1])
            rows = [3, 1]
        query, key, value = (torch.randn(2, len(rows), 8, generator=generator) for _ in range(3))
        found = Next(past)(0, query, key, value)
        for place, row in enumerate(rows):
            new = (key[:, place : place + 1], value[:, place : place + 1])
            seen[row] = tuple(torch.cat(pair, dim=1) for pair in zip(seen[row], new, strict=True))
            expected = F.scaled_dot_product_attention(query[:, place : place + 1], *seen[row])
            torch.testing.assert_close(found[:, place : place + 1], expected, **TIGHT)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_cpu_attention_for_bfloat16_agrees_with_the_one_for_float32(generator, kv_heads):
    query = torch.randn(1, 4, 6, 8, generator=generator)
    key, value = (torch.randn(1, kv_heads, 6, 8, generator=generator) for _ in range(2))
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    rounded = [part.bfloat16().requires_grad_() for part in (query, key, value)]
    expected = attend(*(part.detach().float() for part in rounded), seen)
    found = attend(*rounded, seen)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), rtol=0, atol=0)
