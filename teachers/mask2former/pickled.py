"""detectron2's checkpoints: a pickle of numpy arrays, read without letting it run anything.

A pickle is a program. This reader lets it call what numpy arrays and plain containers are made of, and refuses the file at
the first other name that it asks for.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schemas.errors import DataError

BROKEN = (
    pickle.UnpicklingError,
    *(EOFError, OSError, AttributeError, ImportError, MemoryError),
    *(IndexError, KeyError, OverflowError, TypeError, ValueError),
)


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors under "model" of a detectron2 `.pkl` file. Raises `DataError` for anything but numbers in arrays."""
    try:
        with path.open("rb") as file:
            content = _Arrays(file, encoding="latin1").load()
    except BROKEN as error:
        raise DataError(f"not a pickle of plain arrays: {error}", str(path)) from None
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(_is_array(value) for value in state.values()):
        raise DataError("a detectron2 checkpoint holds its arrays under 'model', this one does not", str(path))
    return {str(name): torch.tensor(array) for name, array in state.items()}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


class _Dict(dict[str, Any]):
    """Stands for an OrderedDict; what torch hung on it (versions of modules) is let go."""

    def __setstate__(self, state: Any) -> None:
        pass


def _encode(text: str, encoding: str) -> bytes:
    """How pickles of before protocol 3 write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes written as {encoding}")
    return text.encode("latin1")


class _Arrays(pickle.Unpickler):
    OWN = {("collections", "OrderedDict"): _Dict, ("_codecs", "encode"): _encode}
    # numpy 2 moved `numpy.core` to `numpy._core`.
    NUMPY = {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
    }

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) in self.OWN:
            return self.OWN[module, name]
        if (module, name) in self.NUMPY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
