"""Blocks that are recomputed, or compiled, give what plain ones give, under the same names."""

import warnings

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from student.model import PixelSail
from student.sequence import collate
from student.training import blocks
from tests.student.eve.micro import EVE
from tests.student.micro import micro_config, micro_vocabulary, pointed, spoken

LAYERS = 12  # more than the compiler would compile one by one


def learned(student: PixelSail, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """(logits, gradients) of two batches of other lengths."""
    sums, config = [], student.config
    first = [pointed(rng, 48, 64, 2, config=config), spoken(config=config)]
    for examples in (first, [pointed(rng, 64, 32, 1, config=config)]):
        output = student(collate(examples))
        masks = [logits.square().mean() for logits in output.mask_logits if logits is not None]
        (output.logits_SV.square().mean() + sum(masks)).backward()
        sums.append(output.logits_SV.detach())
    return torch.cat(sums), {name: parameter.grad for name, parameter in student.named_parameters()}


def student(**over) -> PixelSail:
    return PixelSail(micro_config(**over), micro_vocabulary(), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("over", [{}, EVE], ids=["qwen", "eve"])
def test_recomputed_blocks_give_the_same_bits(over: dict):
    plain, recomputed = student(**over), student(**over)
    blocks.recompute(recomputed.single_transformer.model.layers)
    assert list(recomputed.state_dict()) == list(plain.state_dict())
    (one, gradients), (other, again) = (learned(each, np.random.default_rng(0)) for each in (plain, recomputed))
    assert torch.equal(one, other)
    assert all(torch.equal(gradient, again[name]) for name, gradient in gradients.items() if gradient is not None)


def test_recomputed_blocks_keep_less_for_the_backward_pass():
    kept = []
    for recompute in (False, True):
        made, bytes_of = student(), {}
        if recompute:
            blocks.recompute(made.single_transformer.model.layers)
        batch = collate([pointed(np.random.default_rng(0), 64, 64, 0)])

        def pack(tensor: Tensor, bytes_of: dict[int, int] = bytes_of) -> Tensor:
            bytes_of[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            made.states(batch)
        kept.append(sum(bytes_of.values()))
    assert kept[1] < 0.8 * kept[0]


@pytest.mark.slow
@pytest.mark.parametrize(("recompute", "over"), [(False, {}), (True, {}), (False, EVE)], ids=["plain", "recomputed", "eve"])
def test_compiled_blocks_give_the_same_but_for_rounding(recompute: bool, over: dict):
    plain, compiled = student(layers=LAYERS, **over), student(layers=LAYERS, **over)
    layers = compiled.single_transformer.model.layers
    one, gradients = learned(plain, np.random.default_rng(0))
    with warnings.catch_warnings(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        warnings.simplefilter("ignore")  # the compiler's own, of what it is written with
        blocks.compile_blocks(layers)
        if recompute:
            blocks.recompute(layers)
        torch.compiler.reset()
        counters.clear()
        other, again = learned(compiled, np.random.default_rng(0))
    assert 0 < counters["stats"]["unique_graphs"] < LAYERS
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, again[name], atol=1e-4, rtol=1e-3)
