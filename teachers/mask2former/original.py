"""The authors' checkpoint of a Mask2Former: its tensors, and its sizes, which it does not say. What is built of it is built
by transformers (network.py) or by the authors' own code (detectron.py)."""

from pathlib import Path

from torch import Tensor

from schemas.errors import ConfigError
from teachers import weights
from teachers.mask2former.config import Mask2FormerConfig, Mask2FormerSizes
from teachers.mask2former.pickled import read_pickled


def read_original(path: Path) -> dict[str, Tensor]:
    """The tensors: pickled arrays, or a file of torch."""
    return read_pickled(path) if path.suffix == ".pkl" else weights.read_official(path)


def require_sizes(config: Mask2FormerConfig, path: Path) -> Mask2FormerSizes:
    """Raises `ConfigError` where the config does not say what network the checkpoint is of."""
    if config.sizes is None:
        raise ConfigError("an original checkpoint does not say its architecture", str(path), "Set `sizes`.")
    return config.sizes
