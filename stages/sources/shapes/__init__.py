"""Synthetic scenes whose ground truth is known by construction, written in the formats of the real datasets."""

from stages.sources.shapes.config import ShapesConfig
from stages.sources.shapes.write import write_shapes

__all__ = ["ShapesConfig", "write_shapes"]
