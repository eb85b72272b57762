"""From patch states to per-pixel mask features: learned doublings of the grid and the projections around them.

Parameter names and layouts are those of the reference checkpoint.
"""

import copy

from torch import Tensor, nn

from student.config import StudentConfig


class Separable(nn.Module):
    """A depthwise 3×3 convolution, then a pointwise one."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.pointwise = nn.Conv2d(width, width, 1)

    def forward(self, x_GdHW: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x_GdHW))


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (G, d, h, w)."""

    def __init__(self, width: int):
        super().__init__()
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x_GdHW: Tensor) -> Tensor:
        return self.ln(x_GdHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class UpsampleBlock(nn.Sequential):
    """Twice the height and width: transposed convolution, GELU, separable convolution, norm."""

    def __init__(self, width: int):
        super().__init__(nn.ConvTranspose2d(width, width, 2, stride=2), nn.GELU(), Separable(width), ChannelNorm(width))


def upsample_blocks(config: StudentConfig) -> nn.ModuleList:
    """The doublings from the patch grid to `mask_stride`, none where that is a whole patch; all start from the same weights, as
    in the reference."""
    block = UpsampleBlock(config.head_width)
    return nn.ModuleList(copy.deepcopy(block) for _ in range(config.upsample_blocks))


def two_layers(first: int, middle: int, last: int) -> nn.Sequential:
    """Linear, ReLU, Linear."""
    return nn.Sequential(nn.Linear(first, middle), nn.ReLU(), nn.Linear(middle, last))
