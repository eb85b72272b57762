"""How the decoder's blocks are carried out in training: their insides recomputed for the backward pass, or compiled.

Nothing is wrapped: the modules, and so the names of their tensors, stay as they are.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Iterable[nn.Module]) -> None:
    """Keep of each block its input alone; the backward pass makes the rest again by the same operations, to the same bits."""
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each block for any number of tokens; all are one to the compiler. Attention is left as it is: who sees whom
    changes with every batch, and would be compiled anew each time. Blocks that are recomputed too must be compiled first:
    the compiler takes nothing out of a checkpoint that it may not look into."""
    for block in blocks:
        block.forward = partial(_compiled, torch.compile(block.forward, dynamic=True))


def _compiled(forward: Callable[..., Tensor], x_RH: Tensor, turn: Any, sight: Callable[..., Tensor]) -> Tensor:
    return forward(x_RH, turn, _Uncompiled(sight))


class _Uncompiled:
    """A function that the compiler does not look into."""

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function

    @torch.compiler.disable
    def __call__(self, *inputs: Any) -> Tensor:
        return self.function(*inputs)
