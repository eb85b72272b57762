"""The loader at full speed, and beside a training step that takes 1 GB of features a second.

A sample is a small picture, a short dialogue and 6 MiB of features in two columns, one in bfloat16 and one in int8, so that
it is the features that are measured. Every layout feeds the same loader: its samples are decoded, encoded and collated by the
same code, in this process or ahead by threads, and only the bytes of features come from elsewhere. All of it is in the page
cache. Our store appears twice: a row that is read for the first time is held against its checksum, later ones are not. The bars
of waiting are of these later visits; the first epoch of a process is all first visits, and what they wait with as many readers
as training has where nothing is said is a figure of its own, without a bar.

Of the peers, WebDataset gives its rows in its own order, which spares it the search. Memory is that of a fresh process, what
it maps of files left out: the kernel takes that back whenever it is wanted.
"""

import io
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from bench_store import random_access
from harness import Bar, Result, interleaved, main
from PIL import Image

from schemas import codecs, tables
from schemas.artifact import Artifact
from schemas.dialogue import Sample, Turn
from schemas.features import FeatureSpec
from schemas.storage import Folder
from schemas.tables import Table, feature_row, plain
from student.config import StudentConfig
from student.data.ahead import ahead
from student.data.corpus import Corpus
from student.data.features import Stored
from student.data.mixture import Order
from student.sequence import Batch, collate
from student.train_config import TrainConfig
from student.vocabulary import Vocabulary

SPECS = {
    "sam2": FeatureSpec(teacher="sam2", layer="image_embed", channels=256, grid=(64, 64)),
    "mask2former": FeatureSpec(teacher="mask2former", layer="mask_features", channels=64, grid=(256, 256), codec="int8"),
}
STUDENT = StudentConfig(layers=1, hidden=32, heads=2, kv_heads=2, head_dim=16, ffn=32, max_side=64)
VOCABULARY = Vocabulary.train(["What is in the picture?", "A picture of noise."] * 4, 300, STUDENT.prompts)
ROWS_A_SHARD, BATCH, AHEAD, SIDE = 16, 8, 2, 64
BYTES_A_SAMPLE = sum(codecs.layout_bytes(spec.layout(*spec.grid)) for spec in SPECS.values())
BYTES_A_SECOND = 1e9
DEFAULT = TrainConfig().readers
READERS = tuple(sorted({0, 1, 2, DEFAULT}))
FIRST, LATER = "our store, first visits", "our store, later visits"
MOST_BATCHES = AHEAD + 1 + 1 + max(READERS)  # asked for, in hand, and what freed memory is not given back at once


class Reader(Protocol):
    """What a corpus asks of a column."""

    def read(self, shard: int, row: int) -> Stored: ...


def write_store(folder: Path, pictures: int) -> None:
    """Images, samples and two columns, as the stages leave them."""
    random = np.random.default_rng(0)
    seal(folder, "images", tables.IMAGES, pictures, lambda n: _image(random, n))
    seal(folder, "samples", tables.SAMPLES, pictures, _sample)
    for name, spec in SPECS.items():
        map_of = partial(random.standard_normal, (spec.channels, *spec.grid), np.float32)
        row = lambda number, spec=spec, map_of=map_of: feature_row(spec, key_of(number), map_of())  # noqa: E731
        seal(folder, f"features/{name}", tables.features(spec), pictures, row)


def seal(folder: Path, name: str, table: Table, pictures: int, row: Callable[[int], dict[str, Any]]) -> None:
    shards = -(-pictures // ROWS_A_SHARD)
    artifact = Artifact(Folder(str(folder / name)), {"benchmark": "loader"}, table, shards, name)
    for shard in range(shards):
        numbers = range(shard * ROWS_A_SHARD, min(pictures, (shard + 1) * ROWS_A_SHARD))
        artifact.write(shard, table.rows([row(number) for number in numbers]))
    artifact.seal("", "", {}, code="", packages={})


def key_of(number: int) -> str:
    return f"{number:032x}"


def _image(random: np.random.Generator, number: int) -> dict[str, Any]:
    data = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(data, "PNG")
    row = {"image_key": key_of(number), "width": SIDE, "height": SIDE, "format": "PNG", "bytes": data.getvalue()}
    return row | {"sha256": "", "aliases": []}


def _sample(number: int) -> dict[str, Any]:
    turns = [Turn("What is in the picture?", "A picture of noise.")]
    return plain(Sample(f"{number}", key_of(number), "train", "caption", turns))


def open_corpus(folder: Path, readers: Mapping[str, Reader] | None = None) -> Corpus:
    """The samples, with features from our store or from other readers."""
    named = {name: Artifact.sealed(Folder(str(folder / name)), name) for name in ("images", "samples")}
    ours = {name: Artifact.sealed(Folder(str(folder / "features" / name)), name) for name in SPECS}
    corpus = Corpus(**named, features={} if readers else ours, vocabulary=VOCABULARY, config=STUDENT)
    corpus.features |= readers or {}
    return corpus


@dataclass(frozen=True)
class Peer:
    """A column in another layout: `row` gives the bytes of picture number n, or of the next."""

    spec: FeatureSpec
    row: Callable[[int], Any]

    def read(self, shard: int, row: int) -> Stored:
        return Stored.of(self.spec, self.row(shard * ROWS_A_SHARD + row), self.spec.grid)


def npy_files(folder: Path, name: str, rows: Sequence[bytes]) -> Callable[[int], Any]:
    for number, row in enumerate(rows):
        np.save(folder / f"{name}-{number}.npy", np.frombuffer(row, np.uint8))
    return lambda number: np.load(folder / f"{name}-{number}.npy")


def tars(folder: Path, name: str, rows: Sequence[bytes]) -> Callable[[int], Any]:
    """Every thread goes through the tar by itself, as every worker would."""
    from webdataset import TarWriter, WebDataset

    path, local = folder / f"{name}.tar", threading.local()
    with TarWriter(str(path)) as tar:
        for number, row in enumerate(rows):
            tar.write({"__key__": f"{number:06d}", "bin": row})

    def following(number: int) -> bytes:
        if not hasattr(local, "rows"):
            local.rows = iter(WebDataset(str(path), shardshuffle=False).repeat())
        return next(local.rows)["bin"]

    return following


def hf_dataset(folder: Path, name: str, rows: Sequence[bytes]) -> Callable[[int], Any]:
    from datasets import Dataset, Features, Value, disable_progress_bars, load_from_disk

    disable_progress_bars()
    kind, shards = Features({"feature": Value("large_binary")}), -(-len(rows) // ROWS_A_SHARD)
    Dataset.from_dict({"feature": list(rows)}, features=kind).save_to_disk(folder / name, num_shards=shards)
    read = load_from_disk(str(folder / name))
    return lambda number: read[number]["feature"]


# What lays a column out, and the library it needs that Sailyard does not.
PEERS: dict[str, tuple[Callable[..., Callable[[int], Any]], str]] = {
    ".npy, a file a row": (npy_files, ""),
    "WebDataset, in sequence": (tars, "webdataset"),
    "HF datasets, binary": (hf_dataset, "datasets"),
}


def layouts(folder: Path, epochs: int) -> dict[str, Iterator[Corpus]]:
    """Layout -> its samples for each epoch. Ours of the first visits is opened anew for each, so that its rows are checked."""
    ours = open_corpus(folder)
    loaded(ours, 0, -(-len(ours) // BATCH))
    columns = {name: rows_of(folder, name) for name in SPECS}
    fresh = [open_corpus(folder) for _ in range(epochs)]
    found = {FIRST: iter(fresh), LATER: repeat(ours)}
    for place, (title, (make, library)) in enumerate(PEERS.items()):
        if not library or find_spec(library):
            (folder / f"peer-{place}").mkdir()
            readers = {name: Peer(SPECS[name], make(folder / f"peer-{place}", name, rows)) for name, rows in columns.items()}
            found[title] = repeat(open_corpus(folder, readers))
    return found


def rows_of(folder: Path, name: str) -> list[bytes]:
    tables_of = Artifact.sealed(Folder(str(folder / "features" / name))).iterate(["feature"])
    return [row for table in tables_of for row in table.column(0).to_pylist()]


def batches(corpus: Corpus, readers: int, steps: int) -> Generator[Batch]:
    """As training makes them."""
    order = Order(0, len(corpus))
    make = lambda step: collate(corpus.examples(order.between(step * BATCH, (step + 1) * BATCH)))  # noqa: E731
    if readers:
        yield from ahead(make, range(steps), depth=AHEAD, threads=readers)
    else:
        yield from map(make, range(steps))


def loaded(corpus: Corpus, readers: int, steps: int) -> None:
    for _ in batches(corpus, readers, steps):
        pass


def waited(corpus: Corpus, readers: int, steps: int) -> float:
    """The share of its time for which a training waits for data, once it is under way. A step keeps its batch to its end, and
    leaves the CPU to others."""
    with closing(batches(corpus, readers, AHEAD + 1 + steps)) as coming:
        for _ in range(AHEAD + 1):
            next(coming)
        start, waiting = time.perf_counter(), 0.0
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(coming)
            waiting += time.perf_counter() - asked
            time.sleep(BATCH * BYTES_A_SAMPLE / BYTES_A_SECOND)
            del batch
        return waiting / (time.perf_counter() - start)


def case(folder: str, readers: str, epochs: str) -> None:
    """Train on nothing but data in this process; print the most memory it held, over what it held before, epoch by epoch."""
    corpus = open_corpus(Path(folder))
    before, most, told = anonymous_bytes(), 0, []
    for _ in range(int(epochs)):
        for _batch in batches(corpus, int(readers), len(corpus) // BATCH):
            most = max(most, anonymous_bytes() - before)
        told.append(most)
    print(json.dumps(told))


def anonymous_bytes() -> int:
    """What this process holds in memory and could not read again from its files."""
    (kib,) = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) * 1024


def memory(folder: Path, readers: int, epochs: int) -> list[int]:
    """What `case` printed in a process of its own."""
    rooms = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", "import sys, bench_loader; bench_loader.case(*sys.argv[1:])"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(rooms)}
    done = subprocess.run([*command, str(folder), str(readers), str(epochs)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, *, pictures: int, rounds: int) -> Result:
    access = statistics.median(random_access(folder, pictures, 40 * rounds, 4 * rounds))
    write_store(folder, pictures)
    steps, shares = pictures // BATCH, defaultdict[str, list[float]](list)
    fast, slow = {}, {}
    for layout, corpora in layouts(folder, 2 * rounds * len(READERS)).items():
        for readers in READERS:
            name = f"{layout}, {readers} readers"
            fast[name] = lambda corpora=corpora, readers=readers: loaded(next(corpora), readers, steps)
            slow[name] = lambda name=name, corpora=corpora, readers=readers: shares[name].append(
                waited(next(corpora), readers, max(1, steps - AHEAD - 1))
            )
    times = interleaved(fast, rounds)
    interleaved(slow, rounds)
    waiting = {name: statistics.median(found) for name, found in shares.items()}
    peaks = memory(folder, max(READERS), epochs=3)
    return Result(
        [
            Bar("share of time waiting at 1 GB/s, later visits, 1 reader", waiting[f"{LATER}, 1 readers"], at_most=0.02),
            Bar("the same, 2 readers", waiting[f"{LATER}, 2 readers"], at_most=0.02),
            Bar("random access, our store / raw memmap", access, at_least=0.90),
            Bar("peak memory, in batches", peaks[-1] / (BATCH * BYTES_A_SAMPLE), at_most=MOST_BATCHES),
        ],
        [_row(name, steps * BATCH / statistics.median(taken), waiting[name]) for name, taken in times.items()],
        {
            f"share of time waiting at 1 GB/s, first visits, train.readers = {DEFAULT}, no bar": waiting[
                f"{FIRST}, {DEFAULT} readers"
            ],
            "peak memory after each epoch, MiB": [f"{peak / 2**20:.0f}" for peak in peaks],
        }
        | _peers(),
    )


def _row(name: str, pace: float, waiting: float) -> dict[str, Any]:
    bytes_a_second = pace * BYTES_A_SAMPLE
    return {
        "layout": name,
        "samples/s": round(pace),
        "GB/s": round(bytes_a_second / 1e9, 2),
        "waiting at 1 GB/s": round(waiting, 4),
    }


def _peers() -> dict[str, list[str]]:
    libraries = [library for _, library in PEERS.values() if library]
    facts = {"peers": [f"{library} {version(library)}" for library in libraries if find_spec(library)]}
    skipped = [library for library in libraries if not find_spec(library)]
    return facts | ({"skipped, for want of pip install 'sailyard[bench]'": skipped} if skipped else {})


if __name__ == "__main__":
    main("loader", measure, pictures=(128, "pictures, with 6 MiB of features each"), rounds=(5, "rounds of an epoch by each"))
