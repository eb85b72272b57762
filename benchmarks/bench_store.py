"""Random reads of 2 MiB feature rows: our store against a raw memmap and against what others use for such rows.

Every contender gives the whole row in memory of its own, on one thread, with the page cache warm and every row read once
before, which is when our store holds it against its checksum. Memmap, .npy and our store give the bfloat16 tensor that training
takes. Peers are set up in their favour: no compression, no statistics, raw bytes and not lists of numbers where they allow it,
and what they give may stay a read-only array.

The bar is taken of our store and the memmap alone, in turns, in one process after the other, with files of its own each: the
ratio hangs on where in memory the kernel puts a file, and what is read of it. The table is of all in turns: there each begins
with caches that the others have swept, which costs the quick ones most. At last both read rows that are on the disk alone.
"""

import os
import random
import statistics
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from harness import Bar, Result, Times, interleaved, main, speed

from schemas import tables
from schemas.artifact import Artifact
from schemas.codecs import from_bf16_bits
from schemas.features import FeatureSpec
from schemas.storage import Folder
from schemas.tables import feature_row
from student.data.features import FeatureReader

SHAPE = (256, 64, 64)
SPEC = FeatureSpec(teacher="sam2", layer="image_embed", channels=SHAPE[0], grid=SHAPE[1:])
ROWS_A_SHARD = 16
ROWS_A_ROUND = 32
PROCESSES = 20  # that the bar is taken over
COLD_ROUNDS = 5
MEMMAP, OURS = "raw memmap", "our store"
Read = Callable[[int], Any]
Make = Callable[[Path, np.ndarray], Read]


def raw_array(folder: Path, bits: np.ndarray) -> Read:
    bits.tofile(folder / "raw")
    return _open_array(folder, len(bits))


def _open_array(folder: Path, rows: int) -> Read:
    mapped = np.asarray(np.memmap(folder / "raw", "<u2", "r", shape=(rows, *SHAPE)))
    return lambda row: mapped[row].copy()


def raw_memmap(folder: Path, bits: np.ndarray) -> Read:
    bits.tofile(folder / "raw")
    return _open_memmap(folder, len(bits))


def _open_memmap(folder: Path, rows: int) -> Read:
    read = _open_array(folder, rows)
    return lambda row: _tensor(read(row))


def our_store(folder: Path, bits: np.ndarray) -> Read:
    """Written and read as the features stage and training do."""
    store = _store(folder, len(bits))
    for shard in range(store.shards):
        numbers = range(shard * ROWS_A_SHARD, min(len(bits), (shard + 1) * ROWS_A_SHARD))
        rows = [feature_row(SPEC, f"{n:032x}", from_bf16_bits(bits[n])) for n in numbers]
        store.write(shard, tables.features(SPEC).rows(rows))
    return _open_store(folder, len(bits))


def _store(folder: Path, rows: int) -> Artifact:
    return Artifact(Folder(str(folder)), {"benchmark": "store"}, tables.features(SPEC), -(-rows // ROWS_A_SHARD))


def _open_store(folder: Path, rows: int) -> Read:
    reader = FeatureReader(_store(folder, rows))
    return lambda row: reader.read(*divmod(row, ROWS_A_SHARD)).values


def npy_files(folder: Path, bits: np.ndarray) -> Read:
    for row, feature in enumerate(bits):
        np.save(folder / f"{row}.npy", feature)
    return lambda row: _tensor(np.load(folder / f"{row}.npy"))


def parquet(group: int, folder: Path, bits: np.ndarray) -> Read:
    path = folder / "rows.parquet"
    table = pa.table({"feature": pa.array([feature.tobytes() for feature in bits], pa.large_binary())})
    pq.write_table(table, path, row_group_size=group, compression="none", use_dictionary=False, write_statistics=False)
    file = pq.ParquetFile(path)
    return lambda row: _array(file.read_row_group(row // group).column(0)[row % group].as_buffer())


def webdataset(folder: Path, bits: np.ndarray) -> Read:
    """A tar has no index: its rows come in their order, whichever is asked for."""
    from webdataset import TarWriter, WebDataset

    with TarWriter(str(folder / "rows.tar")) as tar:
        for row, feature in enumerate(bits):
            tar.write({"__key__": f"{row:06d}", "bin": feature.tobytes()})
    samples = iter(WebDataset(str(folder / "rows.tar"), shardshuffle=False).repeat())
    return lambda row: _array(next(samples)["bin"])


def hf_binary(folder: Path, bits: np.ndarray) -> Read:
    from datasets import Value

    rows = _hf_dataset(folder, [feature.tobytes() for feature in bits], Value("large_binary"))
    return lambda row: _array(rows[row]["feature"])


def hf_array(folder: Path, bits: np.ndarray) -> Read:
    from datasets import Array3D

    rows = _hf_dataset(folder, list(bits), Array3D(SHAPE, "uint16")).with_format("numpy")
    return lambda row: rows[row]["feature"]


def _hf_dataset(folder: Path, column: Sequence[Any], kind: Any) -> Any:
    from datasets import Dataset, Features, disable_progress_bars, load_from_disk

    disable_progress_bars()
    shards = -(-len(column) // ROWS_A_SHARD)
    Dataset.from_dict({"feature": column}, features=Features({"feature": kind})).save_to_disk(folder, num_shards=shards)
    return load_from_disk(str(folder))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).view(torch.bfloat16)


def _array(data: Any) -> np.ndarray:
    return np.frombuffer(data, "<u2").reshape(SHAPE)


# What makes each reader, and the library it needs that Sailyard does not.
CONTENDERS: dict[str, tuple[Make, str]] = {
    MEMMAP: (raw_memmap, ""),
    f"{MEMMAP}, left an array": (raw_array, ""),
    OURS: (our_store, ""),
    ".npy, a file a row": (npy_files, ""),
    "Parquet, 1 row a group": (partial(parquet, 1), ""),
    "Parquet, 8 rows a group": (partial(parquet, 8), ""),
    "WebDataset, in sequence": (webdataset, "webdataset"),
    "HF datasets, binary": (hf_binary, "datasets"),
    "HF datasets, Array3D": (hf_array, "datasets"),
}


def measure(folder: Path, *, rows: int, rounds: int) -> Result:
    bits = features(rows)
    each = random_access(folder, rows, rounds, min(PROCESSES, rounds))
    bar = Bar(f"{OURS} / {MEMMAP}", statistics.median(each), at_least=0.90)
    there = {name: make for name, (make, library) in CONTENDERS.items() if not library or find_spec(library)}
    reads = {name: opened(name, make, folder / str(place), bits) for place, (name, make) in enumerate(there.items())}
    blocks = {name: random_reads(read, rows) for name, read in reads.items()}
    table = _table(interleaved(blocks, rounds))
    del reads, blocks  # with them go the mappings
    folders = {name: folder / str(place) for place, name in enumerate(there)}
    cold = {"from disk, our store / raw memmap": round(from_disk(folders, rows), 3)}
    return Result([bar], table, {"the bar, process by process": [f"{found:.3f}" for found in each]} | cold | _peers(there))


def features(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 0x7F80, (rows, *SHAPE), dtype="<u2")


def random_access(folder: Path, rows: int, rounds: int, processes: int) -> list[float]:
    """How fast our store is against the memmap, in each of some processes that share the rounds."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.starmap(_against_memmap, [(str(folder), rows, rounds // processes)] * processes, chunksize=1)


def _against_memmap(folder: str, rows: int, rounds: int) -> float:
    bits = features(rows)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        reads = {name: opened(name, CONTENDERS[name][0], Path(own, name), bits) for name in (MEMMAP, OURS)}
        return speed(interleaved({name: random_reads(read, rows) for name, read in reads.items()}, rounds), OURS, MEMMAP)


def _peers(there: Collection[str]) -> dict[str, Any]:
    libraries = {library for _, library in CONTENDERS.values() if library and find_spec(library)}
    skipped = [name for name in CONTENDERS if name not in there]
    facts = {"peers": [f"{library} {version(library)}" for library in sorted(libraries)]}
    return facts | ({"skipped, for want of pip install 'sailyard[bench]'": skipped} if skipped else {})


def opened(name: str, make: Make, folder: Path, bits: np.ndarray) -> Read:
    """A reader that gave every row once, bit for bit: after that the page cache is warm, and nothing waits to be written."""
    folder.mkdir()
    read = make(folder, bits)
    os.sync()
    for row, feature in enumerate(bits):
        got = read(row)
        if not np.array_equal(got.view(torch.uint16).numpy() if isinstance(got, torch.Tensor) else got, feature):
            raise SystemExit(f"{name}: row {row} is not what was written")
    return read


def random_reads(read: Read, rows: int) -> Callable[[], None]:
    """Reads a round's rows. Every contender draws the same ones."""
    draw = random.Random(0)

    def block() -> None:
        for row in draw.choices(range(rows), k=ROWS_A_ROUND):
            read(row)

    return block


def from_disk(folders: Mapping[str, Path], rows: int) -> float:
    """How fast our store is against the memmap where the page cache holds none of the rows: a bank of features is larger than
    memory. Ours holds each row against its checksum, for a process that just started has seen none."""
    opens = {MEMMAP: _open_memmap, OURS: _open_store}
    order = random.Random(1).sample(range(rows), rows)

    def cold(name: str) -> None:
        read = opens[name](folders[name], rows)
        for row in order:
            read(row)

    times: dict[str, list[float]] = {name: [] for name in opens}
    for _ in range(COLD_ROUNDS):
        for name in opens:
            _forget(folders[name])
            times[name] += interleaved({name: partial(cold, name)}, 1)[name]
    return speed(times, OURS, MEMMAP)


def _forget(folder: Path) -> None:
    """Out of the page cache; it keeps what is mapped, so nobody may have these files open."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _table(times: Times) -> list[dict[str, Any]]:
    paces = {name: ROWS_A_ROUND / statistics.median(seconds) for name, seconds in times.items()}
    ratios = {name: speed(times, name, MEMMAP) for name in times}
    return [
        {"layout": n, "rows/s": round(paces[n]), "MiB/s": round(2 * paces[n]), "of raw": round(ratios[n], 3)} for n in times
    ]


if __name__ == "__main__":
    main("store", measure, rows=(128, "rows of 2 MiB"), rounds=(200, "rounds of 32 random reads by each contender"))
