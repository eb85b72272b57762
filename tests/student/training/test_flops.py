"""The count of operations is what torch counts when the student runs, but for what its kernels compute beside the mask."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from student.config import LossConfig, StudentConfig
from student.losses import Distillation, losses
from student.model import PixelSail
from student.sequence import Batch, Span, collate
from student.training.flops import forward_flops, seen_pairs, training_flops
from tests.student.micro import micro_config, micro_vocabulary, pointed, spoken


@pytest.fixture
def batch(rng: np.random.Generator) -> Batch:
    return collate([pointed(rng, 40, 56, 2), spoken(), pointed(rng, 64, 30, 1), pointed(rng, 33, 20, 0)])


def counted(config: StudentConfig, batch: Batch, every_picture: bool, backward: bool) -> int:
    """As torch counts it, attention spelt out: it does not know the fused kernel of a CPU."""
    student = PixelSail(config, micro_vocabulary(), torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = student(batch, every_picture=every_picture)
        if backward:
            loss = LossConfig(points=8)
            losses(output, batch, Distillation(config, loss, {}), loss, torch.Generator().manual_seed(0))["total"].backward()
    return counter.get_total_flops()


def beside_the_mask(config: StudentConfig, batch: Batch) -> int:
    """Text sees no text behind it; a kernel that takes a mask computes that too."""
    pairs = sum((span.length - span.block) * (span.length - span.block - 1) // 2 for span in batch.spans)
    return 4 * config.layers * config.heads * config.head_dim * pairs


@pytest.mark.parametrize("every_picture", [True, False])
@pytest.mark.parametrize("over", [{}, {"mask_width": 32}, {"mask_stride": 2}, {"tie_embeddings": True}], ids=str)
def test_a_forward_pass(batch: Batch, over: dict, every_picture: bool):
    config = micro_config(**over)
    parts = forward_flops(config, batch, len(micro_vocabulary()), every_picture)
    assert sum(parts.values()) + beside_the_mask(config, batch) == counted(config, batch, every_picture, backward=False)


def test_a_training_step(batch: Batch):
    """Without the upsampler: of a depthwise convolution torch counts the weights' gradient once for each pair of channels."""
    config, rows = micro_config(mask_stride=16), len(micro_vocabulary())
    ours = training_flops(config, batch, rows, every_picture=False)
    assert ours + 3 * beside_the_mask(config, batch) == counted(config, batch, every_picture=False, backward=True)


def test_pairs_are_those_of_the_mask():
    for length, block in ((9, 5), (6, 6), (4, 0), (1, 0)):
        pairs = [(i, j) for i, j in np.ndindex(length, length) if j <= i or max(i, j) < block]
        assert seen_pairs(Span(3, length, block)) == len(pairs)
