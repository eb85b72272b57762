"""How much matrix arithmetic a batch asks of the student: what its speed is held against (MFU).

Counted from sizes: products of matrices and convolutions, two operations for a multiplication with its addition. Attention
counts the pairs of tokens of which one may see the other; what a kernel computes beside them is its own waste. Norms,
activations, the losses and their linears into teachers' spaces are left out: together they are a few parts in a hundred.
"""

import re

from student.config import StudentConfig
from student.sequence import IGNORED, Batch, Grid, Span

# Dense bfloat16 operations a second, as their makers give them, by the word of the device's name that says which it is.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "B200": 2250e12}


def peak(device: str) -> float | None:
    """The most operations a second of a GPU that is known; None for others, and for CPUs."""
    import torch

    if torch.device(device).type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for known, flops in PEAKS.items() if known in re.split(r"\W", name)), None)


def forward_flops(config: StudentConfig, batch: Batch, rows: int, every_picture: bool = True) -> dict[str, int]:
    """Part of the student -> operations of one forward pass. rows: of the vocabulary. every_picture: as in `PixelSail`."""
    shown = [grid for grid, masks in zip(batch.grids, batch.masks, strict=True) if grid and (every_picture or len(masks))]
    masked = [(grid, len(masks)) for grid, masks in zip(batch.grids, batch.masks, strict=True) if grid and len(masks)]
    supervised = int((batch.next_labels_R != IGNORED).sum())
    pixels, inner, marks = _read(config)
    counts = {
        "patches": len(batch.patches_NP) * (pixels + inner),
        "prompts": marks,
        "decoder": config.layers * len(batch.tokens_R) * _block(config),
        "attention": config.layers * 2 * config.heads * config.head_dim * sum(map(seen_pairs, batch.spans)),
        "language head": supervised * config.hidden * rows,
        "mask features": sum(_mask_features(config, grid) for grid in shown),
        "masks": sum(_masks(config, grid, count) for grid, count in masked),
    }
    return {part: 2 * count for part, count in counts.items()}


def training_flops(config: StudentConfig, batch: Batch, rows: int, every_picture: bool = True) -> int:
    """Operations forward and backward, which is twice as much: by the weights and by the inputs. Pixels need no gradient."""
    pixels, _, _ = _read(config)
    return 3 * sum(forward_flops(config, batch, rows, every_picture).values()) - 2 * len(batch.patches_NP) * pixels


def seen_pairs(span: Span) -> int:
    """How many pairs (who looks, at whom) a sample has: its block with all of itself, its text with what stands before."""
    return span.block**2 + (span.length * (span.length + 1) - span.block * (span.block + 1)) // 2


def _read(config: StudentConfig) -> tuple[int, int, int]:
    """Multiplications of a patch's numbers; of what its four parts have become, in EVEv2; and those that project the prompts,
    which EVEv2 adds as they are."""
    numbers = 3 * config.patch**2
    if config.eve:
        return numbers * config.eve.channels, 4 * config.eve.channels * config.hidden, 0
    return numbers * config.hidden, 0, config.prompts * config.hidden**2 if config.prompting == "injected" else 0


def _block(config: StudentConfig) -> int:
    """Multiplications of a layer for one token, attention itself left out."""
    wide, narrow = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return config.hidden * (2 * wide + 2 * narrow + 3 * config.ffn)


def _mask_features(config: StudentConfig, grid: Grid) -> int:
    """Multiplications from a grid of patch states to its mask features."""
    cells, d, s = grid[0] * grid[1], config.head_width, config.mask_dim
    count = cells * config.hidden * (config.hidden + d) if config.hidden != d else 0
    for _ in range(config.upsample_blocks):
        count += 4 * cells * d * (d + 9 + d)  # transposed, depthwise and pointwise convolution, for each new cell
        cells *= 4
    return count + cells * d * (d + s)


def _masks(config: StudentConfig, grid: Grid, count: int) -> int:
    """Multiplications of `count` queries, and of each with the picture's mask features."""
    cells = grid[0] * grid[1] * 4**config.upsample_blocks
    return count * (config.head_width * (config.hidden + config.mask_dim) + config.mask_dim * cells)
