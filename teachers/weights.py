"""Where a teacher's numbers come from: a published folder, an official checkpoint, or a seed; and their digest.

    weights = "random"       a function of the seed, the same in every process
    a folder                 Hugging Face layout: config.json, and safetensors or (older) `pytorch_model.bin`
    a file                   a checkpoint as its authors published it, its names mapped to those of transformers

A checkpoint must fit its network exactly: a tensor too few, too many or of another shape is an error that names it.
"""

import hashlib
import json
import pickle
import re
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from schemas.config import differences
from schemas.errors import ConfigError, DataError
from schemas.storage import Folder

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# What torch's safe loader is known to raise on damaged and on hostile files.
_ON_READING = (pickle.UnpicklingError, struct.error, EOFError, OSError, RuntimeError)
_DAMAGE = (*_ON_READING, ValueError, LookupError, TypeError, AttributeError, AssertionError)


def seeded(build: Callable[[], ModuleT], seed: int, gain: float) -> ModuleT:
    """The network with weights that are a function of `seed` alone; the caller's random state is left as it was.

    The published initialisations suit a start of training and leave a fresh network almost constant over an image. Here
    linear and convolution weights have the standard deviation gain / sqrt(fan in) and embeddings 1, so that features vary
    with what is in the picture; `gain` brings their standard deviation near one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        torch.manual_seed(seed)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=gain / module.weight[0].numel() ** 0.5)
            elif isinstance(module, nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=gain / module.weight.shape[0] ** 0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
    return model


def frozen(model: ModuleT) -> ModuleT:
    """The same network in evaluation mode, its parameters out of reach of gradients."""
    return model.eval().requires_grad_(False)


def locate(weights: str, folder: str | None) -> Path:
    """Where the files of `weights` lie. Nothing is downloaded: a run must not depend on what a name means today."""
    if folder is None:
        remedy = (
            f"Run `hf download {weights} --local-dir DIR`, or fetch the file that the authors published, "
            "and set `folder` to it in the teacher's config."
        )
        raise ConfigError("a teacher with published weights needs their `folder`", weights, remedy)
    if not Path(folder).exists():
        raise DataError(f"no weights of {weights} here", folder, "Correct `folder` in the teacher's config.")
    return Path(folder)


@contextmanager
def at_hand(weights: str, folder: str | None) -> Iterator[Path]:
    """Where they lie, while they are read: those that lie in a store and not on a disk are copied for that time."""
    store = Folder(folder or "")
    if folder is None or store.is_local:
        yield locate(weights, folder)
        return
    with tempfile.TemporaryDirectory(prefix="sailyard-weights-") as copy:
        for name in store.names():
            (Path(copy) / name).write_bytes(store.read(name))
        yield Path(copy)


def read_config(folder: Path) -> dict[str, Any]:
    """The published `config.json`."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the published config: {error}", str(path)) from None
    if not isinstance(content, dict):
        raise DataError("the published config is no JSON object", str(path))
    return content


def require_architecture(asked: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    """Raises `ConfigError` naming each field of `found`, the published architecture, for which the config asks another."""
    faults = [line for name in found if asked[name] is not None for line in differences(asked[name], found[name], name)]
    if faults:
        raise ConfigError(f"the published network differs from the config ({'; '.join(faults)})", str(folder))


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of every safetensors file of a folder; of its `pytorch_model*.bin` files where it has only those."""
    if files := sorted(folder.glob("*.safetensors")):
        parts = [_read_safetensors(file) for file in files]
    elif files := sorted(folder.glob("pytorch_model*.bin")):
        parts = [_tensors(_read_torch(file), file, "a published file holds tensors") for file in files]
    else:
        raise DataError("no safetensors file here", str(folder), "Check `folder` in the teacher's config.")
    return {name: tensor for part in parts for name, tensor in part.items()}


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise DataError(f"not a safetensors file: {error}", str(file)) from None


def read_official(path: Path) -> dict[str, Tensor]:
    """The tensors under "model" of a `.pt` or `.pth` file, read without running any code that it may carry."""
    content = _read_torch(path)
    state = content.get("model") if isinstance(content, dict) else None
    return _tensors(state, path, "an official checkpoint holds its tensors under 'model'")


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"not a checkpoint of plain tensors: {reason}", str(path)) from None


def _tensors(state: Any, path: Path, expected: str) -> dict[str, Tensor]:
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{expected}, this one does not", str(path))
    return state


def renamed(state: dict[str, Tensor], patterns: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """The same tensors, each pattern replaced in every name, in order."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        named[name] = tensor
    return named


def fitted(build: Callable[[], ModuleT], state: dict[str, Tensor], where: Path, spare: str, unused: str = "$^") -> ModuleT:
    """The network with these tensors, in float32; a name that matches `spare` may be left over, one that matches `unused`
    may be missing."""
    with torch.random.fork_rng(devices=[]):
        model = build()
    own = model.state_dict()
    state = {name: tensor for name, tensor in state.items() if name in own or not re.search(spare, name)}
    missing = {name for name in own.keys() - state.keys() if not re.search(unused, name)}
    other_shape = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    groups = {"missing": missing, "unexpected": state.keys() - own.keys(), "of another shape": other_shape}
    faults = [f"{fault}: {_some(sorted(names))}" for fault, names in groups.items() if names]
    if faults:
        remedy = "Check `weights` and `sizes` in the teacher's config."
        raise DataError(f"the weights do not fit the network ({'; '.join(faults)})", str(where), remedy)
    model.load_state_dict(state, strict=False)
    return model


def _some(names: list[str], limit: int = 4) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def digest(model: nn.Module) -> str:
    """SHA-256 over every tensor of the network, by name: name, dtype, shape and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
