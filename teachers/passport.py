"""A teacher's passport: what makes its features, beyond its config."""

import importlib.metadata
from typing import Any

from teachers.config import Mask2FormerConfig, Sam2Config, TeacherConfig

LIBRARIES = ("torch", "transformers", "pillow", "numpy")


def passport(config: TeacherConfig) -> dict[str, Any]:
    """The digest of the weights, the numbers of the preprocessing and the library versions, as JSON types."""
    from teachers.pixels import IMAGENET_MEAN, IMAGENET_STD
    from teachers.weights import digest

    return {
        "kind": config.kind,
        "weights": config.weights,
        "random": config.is_random,
        "digest": digest(_network(config)),
        "dtype": config.dtype,
        "input": _input(config) | {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def _input(config: TeacherConfig) -> dict[str, Any]:
    match config:
        case Sam2Config():
            return {"resize": "squash, bilinear, antialiased", "size": config.image_size}
        case Mask2FormerConfig():
            edges = {"shortest_edge": config.shortest_edge, "longest_edge": config.longest_edge}
            return {"resize": "keep aspect, Pillow bilinear, sides to multiples of 32", **edges}


def _network(config: TeacherConfig) -> Any:
    match config:
        case Sam2Config():
            from teachers import sam2

            return sam2.load(config)
        case Mask2FormerConfig():
            from teachers import mask2former

            return mask2former.load(config)
