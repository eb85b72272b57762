import numpy as np
import pytest
import torch
from torch.nn import functional as F

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


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_cpu_attention_for_bfloat16_agrees_with_the_fused_one(generator, kv_heads):
    query = torch.randn(4, 6, 8, generator=generator)
    key, value = (torch.randn(kv_heads, 6, 8, generator=generator) for _ in range(2))
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    rounded = [part.bfloat16().requires_grad_() for part in (query, key, value)]
    expected = attend(*(part.detach().float() for part in rounded), seen)
    spelt_out = attend(*rounded, seen)
    assert spelt_out.dtype == torch.bfloat16
    torch.testing.assert_close(spelt_out.float(), expected, rtol=0.02, atol=0.02)
