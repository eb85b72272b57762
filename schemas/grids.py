"""The grids that a teacher's maps are stored on: fixed, the teacher's own, or the student's for each picture.

A student resizes pictures to whole patches, so its grid follows from a picture's size alone. The rule stands here because
both the student and whoever stores features for it go by it.
"""

from typing import Literal

from pydantic import Field

from schemas.config import Config

Size = tuple[int, int]


class PatchGrid(Config):
    """The grid of a student's patches, `cells` by `cells` to a patch: 1 for its patch states, 4 for mask features at stride 4
    of patches of 16."""

    patch: int = Field(ge=1)
    max_side: int = Field(ge=1)
    cells: int = Field(1, ge=1)

    def of(self, width: int, height: int) -> Size:
        """(h, w) for a picture of this size."""
        across, down = patched_size(width, height, self.patch, self.max_side)
        return down // self.patch * self.cells, across // self.patch * self.cells


Grid = Size | Literal["native"] | PatchGrid


def grid_of(grid: Grid, width: int, height: int) -> Size | None:
    """(h, w) of the stored map of a picture of this size; None for the teacher's own."""
    if isinstance(grid, PatchGrid):
        return grid.of(width, height)
    return None if grid == "native" else grid


def patched_size(width: int, height: int, patch: int, max_side: int) -> Size:
    """(width, height) after the student's resize: the longer side up to whole patches but at most `max_side`, the other in
    ratio. Both are multiples of `patch` and at least one patch; nothing else is ever enlarged."""
    long, short = max(width, height), min(width, height)
    new_long = min(-(-long // patch) * patch, max_side)
    new_short = max(-(-(new_long * short // long) // patch) * patch, patch)
    return (new_long, new_short) if width >= height else (new_short, new_long)
