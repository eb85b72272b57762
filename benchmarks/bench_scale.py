"""What the driver does for a stage of very many shards, and what millions of pictures would take by that.

A teacher that only books what it would have cost makes small rows, through the real executor, on a local disk; then the
artifact is sealed and planned again. Each case is a fresh process, at the full number of shards and at a tenth of it, so
that what grows faster than the shards shows. Requests are counted on a store in memory that stands in for an object store;
what the pool's pipeline holds for each picture is the growth of its process between two sizes.

`projections` is arithmetic: measured seconds and bytes a shard, the codecs' bytes a picture, and the rates in `GIVEN`,
which were not measured here.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from fsspec.implementations.memory import MemoryFileSystem
from harness import Bar, Result, main
from PIL import Image

from schemas import tables
from schemas.artifact import Artifact
from schemas.codecs import layout_bytes
from schemas.dialogue import Turn
from schemas.features import FeatureSpec
from schemas.regions import Rle
from schemas.storage import Folder
from schemas.tables import IMAGES, PROMPTS, SAMPLES, Table
from stages.base import Inputs, MapStage, Resources, ShardFunction, Tables
from stages.executor import Work, run_map
from stages.features import FeaturesStage
from stages.pool import PoolStage
from stages.probe import peak_memory
from stages.sources.config import ImageFolder
from teachers.config import Sam2Config

SPEC = FeatureSpec(teacher="booked", layer="none", channels=1, grid=(4, 4))
PICTURES_A_SECOND = {"SAM 2": 39.5, "Mask2Former": 39.5}
BYTES_A_SECOND, GETS_A_SECOND, SHARD_BYTES = 500e6, 32 / 0.030, 1 << 30
GIVEN = {
    "SAM 2.1 large, pictures a second on an A100 (sam2/README, compiled, video)": PICTURES_A_SECOND["SAM 2"],
    "Mask2Former Swin-L, as many (assumed: both take about 0.8 T multiply-adds)": PICTURES_A_SECOND["Mask2Former"],
    "bytes a second between one worker and an object store (assumed)": BYTES_A_SECOND,
    "GETs a second while one looks at a store (32 at a time, 30 ms each, assumed)": GETS_A_SECOND,
    "bytes of a shard, of the widest column (chosen: a worker holds four to six times that)": SHARD_BYTES,
}
POOLS = {"COCO": 118_287, "SA-1B": 11_000_000, "a billion": 1_000_000_000}
SAM2 = FeatureSpec(teacher="sam2", layer="image_embed", channels=256, grid=(64, 64))
MASK2FORMER = FeatureSpec(teacher="mask2former", layer="mask_features", channels=256, grid=(256, 256))
COLUMNS = {f"SAM 2 {codec}": (SAM2.model_copy(update={"codec": codec}), 1) for codec in ("bf16", "int8")} | {
    f"Mask2Former {codec}": (MASK2FORMER.model_copy(update={"codec": codec}), 4)
    for codec in ("bf16", "int8", "pca64-int8", "points2000")
}
MOMENT = "2026-01-01T00:00:00+00:00"
STORED = ("SAM 2 bf16", "Mask2Former pca64-int8")


class Booked(MapStage):
    """A row of 32 bytes for each key, and `seconds` in the books."""

    seconds: float = 1 / 39.5

    def table(self) -> Table:
        return tables.features(SPEC)

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        return booked


def booked(inputs: Tables) -> pa.Table:
    row = {"height": 4, "width": 4, "size": 32, "crc": 0, "feature": bytes(32)}
    keys = inputs["keys"].column("image_key").to_pylist()
    return tables.features(SPEC).rows([{"image_key": key, **row} for key in keys])


def keys(folder: Folder, shards: int, rows: int) -> Artifact:
    """The input: `shards` shards of `rows` keys, on a local disk one file under many names, which is quick to make."""
    made = Artifact(folder, {"rows": rows}, PROMPTS, shards, "keys")
    table = PROMPTS.rows([{"image_key": f"{row:032x}", "prompts": []} for row in range(rows)])
    made.write(0, table)
    for number in range(1, shards):
        if folder.is_local:
            os.link(folder.path(made.shard_name(0)), folder.path(made.shard_name(number)))
        else:
            made.write(number, table)
    return made


def work(folder: Folder, shards: int, rows: int, resources: Resources) -> Work:
    """The output goes by the identity of real features: every shard carries it."""
    made = keys(folder.child("keys"), shards, rows)
    config = FeaturesStage(name="sam2", teacher=Sam2Config(), grid=(64, 64)).identity()
    identity = {"stage": "features", "config": config, "inputs": {"keys": made.fingerprint}}
    output = Artifact(folder.child("made"), identity, tables.features(SPEC), shards, "made")
    return Work(Booked(), {"keys": made}, {}, output, resources)


def case(folder: str, executor: str, workers: str, shards: str, rows: str) -> dict[str, Any]:
    """Make, plan, seal and plan again, in this process."""
    from flows.states import state_of

    todo = work(
        Folder(folder), int(shards), int(rows), Resources.model_validate({"executor": executor, "workers": int(workers)})
    )
    told: list[float] = []
    before, busy = peak_memory(), time.process_time()
    run = timed(lambda: run_map(todo, lambda done, total, unit, note="": told.append(time.perf_counter())))
    busy = time.process_time() - busy
    after_run = peak_memory()
    found, half = best(todo.output.found), best(lambda: state_of(todo.output))
    seal = best(lambda: todo.output.seal(MOMENT, MOMENT, {}, code="", packages={}))
    sealed = best(todo.output.record)
    after_seal = peak_memory()
    return {
        "run s": run,
        "ms/shard": 1000 * (told[-1] - told[0]) / max(1, len(told) - 1),
        "driver CPU ms/shard": 1000 * busy / int(shards),
        "events": len(told),
        "found() s": found,
        "plan, half made s": half,
        "seal s": seal,
        "read record s": sealed,
        "record.json MiB": todo.output.folder.size("record.json") / 2**20,
        "driver MiB": after_run / 2**20,
        "with seal MiB": after_seal / 2**20,
        "grown MiB": (after_seal - before) / 2**20,
    }


def timed(what: Callable[[], object]) -> float:
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def best(what: Callable[[], object]) -> float:
    """Of three times, so that another program on the machine counts for less."""
    return min(timed(what) for _ in range(3))


class Counted(MemoryFileSystem):
    """An object store in memory that counts what it is asked."""

    protocol = "counted"
    requests: Counter[str] = Counter()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("counted://", "memory://"))

    def cat_file(self, path: str, **kwargs: Any) -> bytes:
        self.requests["GET"] += 1
        return super().cat_file(path, **kwargs)

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        self.requests["PUT"] += 1
        super().pipe_file(path, value, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        found = super().ls(path, detail=detail, **kwargs)
        self.requests["LIST"] += max(1, math.ceil(len(found) / 1000))
        return found


def requests(_: str, shards: str) -> dict[str, int]:
    """What one step asks of an object store, from the look whether it is done to the look that it is."""
    from flows.graph import Step
    from flows.steps import make_step

    fsspec.register_implementation("counted", Counted)
    store, count = Folder("counted://bench"), int(shards)
    step = Step("made", "build_data", Booked(), {"keys": "keys"}, {}, count, Resources(executor="local"))
    keys(store.child("keys"), count, 1).seal(MOMENT, MOMENT, {}, code="", packages={})
    found = {"keys": Artifact.sealed(store.child("keys"), "keys")}
    found |= {"made": Artifact(store.child("made"), {"a": 1}, Booked().table(), count, "made")}
    Counted.requests.clear()
    make_step(step, found, lambda done, total, unit, note="": None)
    return dict(Counted.requests)


def pool(folder: str, pictures: str) -> dict[str, float]:
    """The pool's pipeline over so many pictures of 8 x 8: what a picture costs beside its pixels."""
    root, rng = Path(folder), np.random.default_rng(0)
    (root / "pictures").mkdir(parents=True)
    for number in range(int(pictures)):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / "pictures" / f"{number:09}.png")
    stage = PoolStage(images=(ImageFolder(path=str(root / "pictures")),), shards=4)
    output = Artifact(Folder(str(root / "images")), {}, stage.table(), 4, "images")
    seconds = timed(lambda: stage.run({}, output, Resources(), lambda *_, **__: None))
    return {"s": seconds, "MiB": peak_memory() / 2**20}


CASES = {"case": case, "requests": requests, "pool": pool}


def print_case(name: str, *given: str) -> None:
    print(json.dumps(CASES[name](*given)))


def in_its_own_process(name: str, folder: Path, *given: int | str) -> dict[str, Any]:
    """What the case of this name found. Ray's workers find the stage by the same path as the process itself."""
    rooms = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", "import sys, bench_scale; bench_scale.print_case(*sys.argv[1:])"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(rooms), "OMP_NUM_THREADS": "1"}
    place = str(folder / "-".join(map(str, (name, *given))))
    done = subprocess.run([*command, name, place, *map(str, given)], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} {given}: exit code {done.returncode}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def a_shard_more(folder: Path, few: int, many: int) -> dict[str, float]:
    """Requests of one step for each further shard."""
    less, more = (in_its_own_process("requests", folder, count) for count in (few, many))
    listed = {"LIST": more.pop("LIST") / 1000}  # each listing of the folder comes in pages of a thousand
    return {kind: (more[kind] - less.get(kind, 0)) / (many - few) for kind in more} | listed


def a_picture_more(folder: Path, few: int, many: int) -> dict[str, float]:
    less, more = (in_its_own_process("pool", folder, count) for count in (few, many))
    return {
        "pool, ms a further picture": 1000 * (more["s"] - less["s"]) / (many - few),
        "pool, KiB of memory a further picture": 1024 * (more["MiB"] - less["MiB"]) / (many - few),
    }


def records_read() -> int:
    """How many records a plan of the COCO project parses: each step's own, and those of its inputs."""
    from flows.config import Project
    from flows.graph import steps_of
    from schemas.config import parse, read_toml

    config = Path(__file__).parents[1] / "flows" / "configs" / "coco.toml"
    return sum(1 + len(step.roles) for step in steps_of(parse(Project, read_toml(config), str(config))))


def opening(folder: Path, rows: int) -> dict[str, float]:
    """What training reads of each shard of pictures when it starts: the keys, behind a footer with a row group a picture."""
    row = {
        "width": 8,
        "height": 8,
        "format": "PNG",
        "bytes": bytes(1000),
        "sha256": "0" * 64,
        "aliases": ["train/000000000001.jpg"],
    }
    made = Artifact(Folder(str(folder / "opening")), {}, IMAGES, 1)
    part = made.write(0, IMAGES.rows([{"image_key": f"{number:032x}", **row} for number in range(rows)]))
    seconds = best(lambda: made.read(0, ["image_key", "error"]))
    return {"ms to read the keys of a shard": 1000 * seconds, "KiB of its footer": (part.bytes - 1000 * rows) / 1024}


def sample_bytes() -> float:
    """Memory of a sample as training holds it: two questions and answers, two masks."""
    turn, mask = Turn("Please segment the person on the left in this picture.", "Sure, it is [SEG]."), Rle(480, 640, "a" * 300)
    fields = {"sample_id": "0" * 40, "image_key": "0" * 32, "split": "train", "task": "segmentation"}
    rows = [fields | {"turns": [turn] * 2, "masks": [mask] * 2, "prompts": []}] * 1000
    return SAMPLES.rows(rows).nbytes / len(rows)


def column_bytes() -> dict[str, int]:
    """Bytes of a picture's row."""
    return {name: layout_bytes(spec.layout(64 * cells, 64 * cells)) for name, (spec, cells) in COLUMNS.items()}


def width() -> int:
    """Pictures of a shard: one number for all tables, so the widest column sets it."""
    return SHARD_BYTES // max(column_bytes()[name] for name in STORED)


def projections(wide: Mapping[str, Any], asked: Mapping[str, float], facts: Mapping[str, float]) -> dict[str, Any]:
    """Pool -> what it would take; every number but the driver's is multiplied out of `GIVEN` and of the codecs' layouts."""
    sizes, pictures_a_shard, found = column_bytes(), width(), {}
    for name, pictures in POOLS.items():
        shards = math.ceil(pictures / pictures_a_shard)
        store = sum(sizes[column] for column in STORED) * pictures / BYTES_A_SECOND / 3600
        found[name] = {
            "pictures": pictures,
            **{f"GPU-hours, {teacher}": pictures / rate / 3600 for teacher, rate in PICTURES_A_SECOND.items()},
            **{f"TB, {column}": pictures * size / 1e12 for column, size in sizes.items()},
            "worker-hours to put it into an object store": store,
            "pictures a shard": pictures_a_shard,
            "shards": shards,
            **{f"{kind}s of one step": calls * shards for kind, calls in asked.items()},
            "hours of GETs of one step": asked.get("GET", 0.0) * shards / GETS_A_SECOND / 3600,
            **_driver(wide, facts, shards),
            "pool, GiB in one process": facts["pool, KiB of memory a further picture"] * pictures / 2**20,
            "pool, hours in one process": facts["pool, ms a further picture"] * pictures / 1000 / 3600,
            "samples in memory, GiB, ten a picture": 10 * facts["bytes of a sample in memory"] * pictures / 2**30,
        }
    return {name: {what: round(value, 3) for what, value in rows.items()} for name, rows in found.items()}


def _driver(wide: Mapping[str, Any], facts: Mapping[str, float], shards: int) -> dict[str, float]:
    """By what a shard took of the widest run; on a local disk."""
    each = {name: value / wide["shards"] for name, value in wide.items() if isinstance(value, int | float)}
    return {
        "minutes of one found(), local": each["found() s"] * shards / 60,
        "minutes to seal, local": each["seal s"] * shards / 60,
        "hours of the driver's CPU on Ray": facts["ms of the driver's CPU a further shard on Ray"] * shards / 1000 / 3600,
        "record.json MiB": each["record.json MiB"] * shards,
        "seconds to read it": each["read record s"] * shards,
        "minutes to plan, all records complete": facts["records that a plan reads"] * each["read record s"] * shards / 60,
        "minutes until training has read all keys": facts["ms to read the keys of a shard"] * shards / 1000 / 60,
        "driver GiB": (wide["with seal MiB"] + wide["MiB a shard"] * (shards - wide["shards"])) / 1024,
    }


def further(few: Mapping[str, Any], many: Mapping[str, Any]) -> float:
    """Milliseconds of the driver's CPU."""
    busy = [row["driver CPU ms/shard"] * row["shards"] for row in (few, many)]
    return (busy[1] - busy[0]) / (many["shards"] - few["shards"])


def measure(folder: Path, *, shards: int, rows: int, workers: int, pictures: int) -> Result:
    sizes = [("local", 1, max(2, shards // 10)), ("local", 1, shards)]
    sizes += [("ray", workers, max(2, shards // 20)), ("ray", workers, max(4, shards // 4))] if workers else []
    measured = [in_its_own_process("case", folder, *size, rows) for size in sizes]
    table = [
        {"case": f"{executor}, {count} worker(s)", "shards": number, "rows": number * rows, **found}
        for (executor, count, number), found in zip(sizes, measured, strict=True)
    ]
    tenth, wide = table[0], table[1]
    grown = (wide["grown MiB"] - tenth["grown MiB"]) / (wide["shards"] - tenth["shards"])
    asked = a_shard_more(folder, max(2, shards // 100), max(4, shards // 50))
    facts = a_picture_more(folder, max(2, pictures // 4), pictures) | opening(folder, width())
    facts |= {"bytes of a sample in memory": sample_bytes(), "records that a plan reads": records_read()}
    facts |= {"ms of the driver's CPU a further shard on Ray": further(*table[2:] or (tenth, wide))}
    grows = lambda name: (wide[name] / wide["shards"]) / (tenth[name] / tenth["shards"])  # noqa: E731
    return Result(
        [
            Bar("found(): seconds a shard, of ten times fewer", grows("found() s"), at_most=3),
            Bar("seal: seconds a shard, of ten times fewer", grows("seal s"), at_most=3),
            Bar(
                "run: driver's CPU a shard, of ten times fewer",
                wide["driver CPU ms/shard"] / tenth["driver CPU ms/shard"],
                at_most=3,
            ),
            Bar("KiB of the driver's memory a further shard", 1024 * grown, at_most=16),
        ],
        table,
        {
            **facts,
            **{f"{kind} requests a shard": count for kind, count in asked.items()},
            "virtual GPU-hours booked": wide["rows"] * Booked().seconds / 3600,
            "given": GIVEN,
            "projections": projections(wide | {"MiB a shard": grown}, asked, facts),
        },
    )


if __name__ == "__main__":
    main(
        "scale",
        measure,
        shards=(10_000, "shards; a tenth as many beside them"),
        rows=(100, "rows a shard"),
        workers=(2, "Ray workers, on a twentieth and a quarter of the shards; 0 leaves Ray out"),
        pictures=(8000, "pictures for the pool; a quarter as many beside them"),
    )
