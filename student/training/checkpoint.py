"""A checkpoint is a folder, `step-00000100/`, whose `state.json` is written last.

    model.safetensors      the student's weights, under the reference's names
    training.safetensors   optimizer moments and the linears into the teachers' spaces; nothing of a teacher
    state.json             step, samples seen, the history so far, the run's identity, sizes and digests of the other two

It counts only when `state.json` is there and the digests agree; anything else is as if it were not. There is no random
state to keep: every random number of a step is drawn from (seed, step). The same state gives the same bytes, so two runs
at once in one folder may each write what the other does; neither takes away what the other still needs. Two that round
otherwise (a GPU, other threads, another layout of workers) may tear each other's, which then do not count.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from schemas.artifact import file_digest
from schemas.config import differences, fingerprint
from schemas.errors import BrokenArtifact, StaleArtifact
from schemas.storage import ABANDONED_AFTER_SECONDS, Folder
from student.config import StudentConfig
from student.model import PixelSail
from student.training.parallel import like
from student.vocabulary import Vocabulary

MODEL, TRAINING, STATE = "model.safetensors", "training.safetensors", "state.json"
Row = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: `history` has a row for each of the `step` steps behind it."""

    folder: Folder
    step: int
    samples: int
    history: list[Row]

    def student(self, config: StudentConfig, vocabulary: Vocabulary) -> PixelSail:
        """The network of these sizes with the weights of the checkpoint."""
        made = PixelSail(config, vocabulary, None)
        made.load_state_dict(self.model())
        return made

    def model(self) -> dict[str, Tensor]:
        return _read_tensors(self.folder, MODEL)

    def training(self) -> dict[str, Tensor]:
        return _read_tensors(self.folder, TRAINING)


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def write(
    folder: Folder,
    identity: Mapping[str, Any],
    *,
    step: int,
    samples: int,
    history: Sequence[Row],
    model: Mapping[str, Tensor],
    training: Mapping[str, Tensor],
) -> Checkpoint:
    """Publish a checkpoint in `folder`; until the last of its files is there it does not count. A whole one stays as it is."""
    found = at(folder, step, identity)
    if found:
        return found
    place = folder.child(name_of(step))
    files = [_write_tensors(place, MODEL, model), _write_tensors(place, TRAINING, training)]
    state = {
        "step": step,
        "samples": samples,
        "fingerprint": fingerprint(identity),
        "identity": dict(identity),
        "files": {name: {"bytes": size, "digest": digest} for name, size, digest in files},
        "history": list(history),
    }
    place.write(STATE, json.dumps(state).encode())
    return Checkpoint(place, step, samples, list(history))


def _write_tensors(place: Folder, name: str, tensors: Mapping[str, Tensor]) -> tuple[str, int, str]:
    """(name, bytes, digest) of the file. It is written from where the tensors lie, without a copy in memory."""
    whole = {key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}
    with _published(place, name) as path:
        save_file(whole, path)
        with path.open("rb") as file:
            return name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _published(place: Folder, name: str) -> Iterator[Path]:
    """A local path to write; what lies there when the block ends well is published as `name`."""
    if place.is_local:
        with place.staged(name) as path:
            yield path
        return
    with tempfile.TemporaryDirectory(prefix="sailyard-checkpoint-") as scratch:
        path = Path(scratch) / name
        yield path
        place.fs.put_file(str(path), place.path(name))


def _read_tensors(place: Folder, name: str) -> dict[str, Tensor]:
    """Of a local file no more is held in memory than is looked at."""
    return load_file(place.path(name)) if place.is_local else load(place.read(name))


def steps(folder: Folder) -> list[int]:
    """Steps that have a checkpoint folder, whole or not, in order."""
    names = (name.removeprefix("step-") for name in folder.folders() if name.startswith("step-"))
    return sorted(int(digits) for digits in names if digits.isdigit())


def latest(folder: Folder, identity: Mapping[str, Any] | None = None) -> Checkpoint | None:
    """The newest whole checkpoint; where it is not of the run `identity` (None is any), StaleArtifact says in what."""
    found = (at(folder, step, identity) for step in reversed(steps(folder)))
    return next((checkpoint for checkpoint in found if checkpoint), None)


def has_later(folder: Folder, step: int, identity: Mapping[str, Any]) -> bool:
    """Whether a whole checkpoint beyond `step` lies here: another run is further."""
    return any(at(folder, later, identity) for later in steps(folder) if later > step)


def at(folder: Folder, step: int, identity: Mapping[str, Any] | None = None) -> Checkpoint | None:
    """The checkpoint of `step`, or None where there is no whole one; StaleArtifact as in `latest`."""
    place = folder.child(name_of(step))
    state = _state(place)
    if state is None or not all(_is_whole(place, name, file) for name, file in state["files"].items()):
        return None
    if identity is not None and state["fingerprint"] != fingerprint(identity):
        raise StaleArtifact("; ".join(differences(state["identity"], identity)), place.url, "Train in another workspace.")
    return Checkpoint(place, state["step"], state["samples"], state["history"])


def open_student(
    folder: Folder,
    config: StudentConfig,
    vocabulary: Vocabulary,
    *,
    trained: bool = True,
    device: str = "cpu",
    threads: int | None = None,
) -> PixelSail:
    """The student of the newest checkpoint, or the untrained one of the first, ready to be asked.

    threads: how many torch uses from here on in this process; None leaves them.
    """
    found = latest(folder) if trained else at(folder, 0)
    if found is None:
        raise BrokenArtifact("no whole checkpoint", folder.url, "Train again.")
    if threads:
        torch.set_num_threads(threads)
    return found.student(config, vocabulary).to(device).eval()


def _state(place: Folder) -> Row | None:
    try:
        return json.loads(place.read(STATE))
    except (FileNotFoundError, ValueError):
        return None


def _is_whole(place: Folder, name: str, file: Mapping[str, Any]) -> bool:
    try:
        return place.size(name) == file["bytes"] and file_digest(place, name) == file["digest"]
    except FileNotFoundError:
        return False


def prune(folder: Folder, newest: int, keep: int) -> None:
    """Of the finished checkpoints up to `newest` leave step 0 and the last `keep`; later ones are a faster run's. Unfinished
    ones go when no living run can be writing them."""
    found = {step: folder.child(name_of(step)) for step in steps(folder) if step}
    finished = [step for step, place in found.items() if place.exists(STATE)]
    outdated = [step for step in finished if step <= newest][:-keep]
    given_up = [step for step in found.keys() - finished if _is_abandoned(found[step])]
    for step in outdated + given_up:
        _remove(found[step])


def _is_abandoned(place: Folder) -> bool:
    now = datetime.now(UTC)
    try:
        newest = max((place.fs.modified(path) for path in place.fs.find(place.path(), refresh=True)), default=now)
    except FileNotFoundError:  # renamed meanwhile: somebody is writing
        return False
    return now - newest > timedelta(seconds=ABANDONED_AFTER_SECONDS)


def _remove(place: Folder) -> None:
    """Take the whole folder away, even while another run does so too."""
    while place.exists():
        with suppress(FileNotFoundError):
            place.remove()


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The optimizer's state by parameter: `names` are those of its parameters, in its order."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer/{names[i]}/{kind}": value for i, moments in state.items() for kind, value in moments.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` took, each tensor laid out as its parameter is; a parameter without state has not
    moved yet."""
    state: dict[int, dict[str, Tensor]] = {}
    number = {name: i for i, name in enumerate(names)}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            name, kind = key.removeprefix("optimizer/").rsplit("/", 1)
            state.setdefault(number[name], {})[kind] = like(value, parameters[number[name]])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_module(module: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Fill `module` with the tensors whose names begin with `prefix`, all of them."""
    module.load_state_dict({key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})
