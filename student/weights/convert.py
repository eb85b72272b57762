"""Weights in the layout of the authors' release, in and out.

The student's tensors have the names of the release, those of the 7B variant too (eve/), so what is converted is what stands
around them:

    a folder of safetensors, or of *.bin, in one file or many; a file .safetensors, .pth, .pt or .bin
    wrappings        the dictionaries that DeepSpeed and mmengine put around a state dict, the prefixes that others put
                     before its names (`module.`)
    teachers         tensors that only training needs: ignored and counted when read, never written
    a tied head      has no tensor of its own; one that is written out must equal the embeddings
    EVEv2's names    where its own code calls a tensor otherwise

Files are opened without running code that they may carry. The release loads loosely; here a tensor that is missing,
unexpected or of another shape is an error that names it.
"""

import pickle
import re
import struct
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from schemas.errors import ConfigError, DataError
from schemas.storage import Folder
from student.config import StudentConfig
from student.model import PixelSail
from student.weights.published import read_json

TRAINING_ONLY = (
    "mask2former_model",
    "mask2former_distill_linear",
    "sam2_model",
    "sam2_distill_linear",
    "radio_model",
    "radio_distill_linear",
)
EMBEDDING, HEAD = "single_transformer.model.embed_tokens.weight", "single_transformer.lm_head.weight"
# The vector before a picture: as the release calls it, and as EVEv2's own code does.
CLASS, START = (f"single_transformer.model.vision_tower.{name}_embedding" for name in ("class", "start"))
_AGAIN = "Fetch the folder again."
_WRAPPERS = ("state_dict", "module", "model", "model_state_dict")
_ROOT = "single_transformer."
_PICKLED = (".pth", ".pt", ".bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# What torch's safe loader is known to raise on damaged and on hostile files.
_ON_READING = (pickle.UnpicklingError, struct.error, zipfile.BadZipFile, EOFError, OSError, RuntimeError)
_DAMAGE = (*_ON_READING, ValueError, LookupError, TypeError, AttributeError, AssertionError)

# What a student in the layout of EVEv2 has in its transformer and no Qwen student has.
_EVE = re.compile(r"(^|\.)(vision_tower\.|moe_)")


@dataclass(frozen=True)
class Loaded:
    """How many tensors filled the student, and how many that only training needs were passed over."""

    tensors: int
    ignored: int


def load(student: PixelSail, path: Path) -> Loaded:
    """Fill the student with a checkpoint of the release, which must fit it exactly."""
    found, where = read(path), str(path)
    require_layout(found, student.config, where)
    tensors, ignored = own(found, where, tied=student.config.tie_embeddings)
    require_fit(student.state_dict(), tensors, where)
    student.load_state_dict(tensors)
    return Loaded(len(tensors), ignored)


def save(student: PixelSail, path: Path) -> None:
    """Write the student as the release does: by its ending a safetensors file, or one that `torch.load` reads."""
    if path.suffix not in (".safetensors", *_PICKLED):
        raise ConfigError(
            f"there is no layout for a file {path.suffix or 'without ending'}", str(path), "Name it .safetensors or .pth."
        )
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
    with Folder(str(path.parent)).staged(path.name) as beside:
        if path.suffix == ".safetensors":
            save_file(state, beside, {"format": "pt"})
        else:
            torch.save(state, beside)


def own(found: Mapping[str, Tensor], where: str, *, tied: bool) -> tuple[dict[str, Tensor], int]:
    """The student's tensors among those of a checkpoint, under their plain names, and how many only training needs."""
    kept = {name: tensor for name, tensor in found.items() if not any(part in name for part in TRAINING_ONLY)}
    before = {name.partition(_ROOT)[0] for name in kept if _ROOT in name}
    if len(before) > 1:
        raise DataError(f"transformers under {_some(sorted(map(repr, before)))}", where, "Give a checkpoint of one student.")
    prefix = before.pop() if before else ""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in kept.items()}
    if START in tensors and CLASS not in tensors:
        tensors[CLASS] = tensors.pop(START)
    if tied:
        drop_tied_head(tensors, where)
    return tensors, len(found) - len(kept)


def drop_tied_head(tensors: dict[str, Tensor], where: str) -> None:
    """Take the language head out, which a student with tied embeddings has not; it must say nothing of its own."""
    head = tensors.pop(HEAD, None)
    if head is not None and EMBEDDING in tensors and not torch.equal(head, tensors[EMBEDDING]):
        raise DataError("its language head is not tied to its embeddings", where, "Set student.tie_embeddings = false.")


def require_fit(
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    where: str,
    *,
    spare: Collection[str] = (),
    resized: Collection[str] = (),
) -> None:
    """DataError naming what is missing, but for `spare`; what is unexpected; and what is of another shape, but for `resized`,
    or no plain numbers."""
    both = wanted.keys() & found.keys()
    other = [name for name in both if found[name].shape != wanted[name].shape and name not in resized]
    groups = {
        "missing": [name for name in wanted if name not in found and name not in spare],
        "unexpected": [name for name in found if name not in wanted],
        "of another shape": [f"{name} {_shape(found[name])} for {_shape(wanted[name])}" for name in other],
        "not of floating point": [name for name in both if not _is_plain(found[name])],
    }
    faults = [f"{fault}: {_some(sorted(names))}" for fault, names in groups.items() if names]
    if faults:
        remedy = "Check the sizes under [student], and that the vocabulary is the one of these weights."
        raise DataError(f"the weights do not fit the student ({'; '.join(faults)})", where, remedy)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta


def eve_tensors(names: Iterable[str]) -> list[str]:
    """Those of the names that only the layout of EVEv2 has."""
    return sorted(name for name in names if _EVE.search(name))


def require_layout(names: Iterable[str], config: StudentConfig, where: str) -> None:
    """DataError where a checkpoint is of EVEv2 and the student is not, or the other way round."""
    found = eve_tensors(names)
    if found and not config.eve:
        what = f"EVEv2 layout: {len(found)} tensors that a Qwen student has not, such as {found[0]}"
        raise DataError(what, where, "Set [student.eve] and the sizes of that student, or give a checkpoint of 0.5B or 3B.")
    if config.eve and not found:
        what = "no EVEv2 layout: neither a vision tower nor weights for what is seen"
        raise DataError(what, where, "Give a checkpoint of the 7B variant, or leave [student.eve] out.")


def read(path: Path, *, pickles: bool = True) -> dict[str, Tensor]:
    """Every tensor of a file or folder, by name; tensors stay on the disk until they are looked at where the format allows it.

    pickles: read what torch wrote too, by its loader that builds nothing but tensors and plain containers.
    """
    files = _files_of(path, pickles) if path.is_dir() else [path]
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in (_read_safetensors(file) if file.suffix == ".safetensors" else _read_pickled(file)).items():
            if name in tensors:
                raise DataError(f"{name} stands in two files", str(file), "Keep the files of one checkpoint.")
            tensors[name] = tensor
    return tensors


def _files_of(folder: Path, pickles: bool) -> list[Path]:
    """The weight files of a folder: those of its index, else all of one kind."""
    for index in _INDEXES if pickles else _INDEXES[:1]:
        if (folder / index).is_file():
            return _indexed(folder / index)
    for pattern in ("*.safetensors", "pytorch_model*.bin", "*.pth") if pickles else ("*.safetensors",):
        if found := sorted(folder.glob(pattern)):
            return found
    raise DataError("no weights here", str(folder), "A model folder holds *.safetensors." if not pickles else "Check the path.")


def _indexed(index: Path) -> list[Path]:
    """The files that an index names, all of them there and in its own folder."""
    places = read_json(index).get("weight_map")
    ending = index.name.split(".")[-3]
    named = places.values() if isinstance(places, dict) else ()
    names = sorted({name if isinstance(name, str) else "" for name in named})
    if not names or any(Path(name).name != name or not name.endswith(f".{ending}") for name in names):
        raise DataError("the index names no files of its own folder", str(index), _AGAIN)
    there = {file.name for file in index.parent.iterdir() if file.is_file()}
    lacking = [f"{name!r:.80}" for name in names if name not in there]
    if lacking:
        raise DataError(f"the index names files that are not there: {_some(lacking)}", str(index), _AGAIN)
    return [index.parent / name for name in names]


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise DataError(f"not a safetensors file: {error}", str(file), "Fetch or write it again.") from None


def _read_pickled(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except _DAMAGE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"not a checkpoint of plain tensors: {reason}", str(file), "Save its state dict alone.") from None
    state = _unwrapped(content)
    if not isinstance(state, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise DataError("a checkpoint holds tensors by name, this one does not", str(file), "Save its state dict alone.")
    return state


def _unwrapped(content: Any) -> Any:
    """What lies within the dictionaries that others put around a state dict, one or two of them."""
    for _ in _WRAPPERS:
        inner = (content[key] for key in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict))
        content = next(inner, content)
    return content


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def _some(names: list[str], limit: int = 4) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
