"""How long the store takes to decide what is missing among many shards, as every start of a stage does.

One shard in a hundred is missing, one is torn, one was made under another identity: none of these may count. The listing
and the files are in the page cache, as they are for the second process of a run. Beside it stands the floor: the same files
opened and their ends read, nothing parsed.
"""

import statistics
from pathlib import Path

import numpy as np
from harness import Bar, Result, interleaved, main, speed

from schemas import tables
from schemas.artifact import Artifact
from schemas.features import FeatureSpec
from schemas.storage import Folder
from stages.features import FeaturesStage
from teachers.config import Sam2Config

SPEC = FeatureSpec(teacher="sam2", layer="image_embed", channels=32, grid=(32, 32))
EVERY = 100
TAIL_BYTES = 1 << 16


def store(url: str, shards: int, seed: int = 0) -> Artifact:
    stage = FeaturesStage(name="sam2", teacher=Sam2Config(seed=seed), grid=SPEC.grid)
    identity = {"stage": "features", "version": 1, "config": stage.identity(), "inputs": {"images": "0" * 32}}
    return Artifact(Folder(url), identity, tables.features(SPEC), shards)


def fill(folder: Path, made: Artifact) -> set[int]:
    """Write the shards to memory, and from there, some of them spoiled, to `folder`; the numbers of those that count."""
    other = store(made.where, made.shards, seed=1)
    folder.mkdir()
    row = tables.feature_row(SPEC, "0", np.zeros((32, 32, 32), np.float32))
    for number in range(made.shards):
        rows = tables.features(SPEC).rows([row | {"image_key": f"{number:032x}"}])
        name = made.shard_name(number)
        (other if number % EVERY == 2 else made).write(number, rows)
        data = made.folder.read(name)
        if number % EVERY != 0:
            (folder / name).write_bytes(data[: len(data) // 2] if number % EVERY == 1 else data)
    return {number for number in range(made.shards) if number % EVERY not in (0, 1, 2)}


def floor(folder: Path) -> int:
    seen = 0
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            seen += len(file.read())
    return seen


def measure(folder: Path, *, shards: int, rounds: int) -> Result:
    memory, local = store("memory://sailyard-bench", shards), store(str(folder / "features"), shards)
    expected = fill(folder / "features", memory)
    if local.found().keys() != expected:
        raise SystemExit("the store counts other shards than those that are whole and of today")
    cases = {"local": local.found, "memory://": memory.found, "floor": lambda: floor(folder / "features")}
    times = interleaved(cases, rounds)
    taken = {name: statistics.median(seconds) for name, seconds in times.items()}
    memory.folder.remove()
    table = [
        {"store": name, "s": s, "us/shard": 1e6 * s / shards, "of floor": 1 / speed(times, name, "floor")}
        for name, s in taken.items()
    ]
    bar = Bar(f"s to decide among {shards} shards", taken["local"], at_most=2.0)
    return Result([bar], table, {"shards that count": len(expected)})


if __name__ == "__main__":
    main("resume", measure, shards=(10_000, "shards"), rounds=(7, "rounds"))
