"""What the engine adds to a shard: a stage over many tiny shards against the same function in a bare loop.

The bare loop is what one would write without Sailyard: read a table, call the function, write a file. The engine also
carries digests, fingerprints, fsync and rename. Memory is the peak of a fresh process that does nothing but run the stage
and seal its artifact; it may grow with shards, a little, but never with rows.
"""

import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from harness import Bar, Result, interleaved, main

from schemas import tables
from schemas.artifact import Artifact
from schemas.features import FeatureSpec
from schemas.storage import Folder
from schemas.tables import Table
from stages.base import Inputs, MapStage, Resources, ShardFunction, Tables, make_shard
from stages.executor import Work, run_map
from stages.features import FeaturesStage
from teachers.config import Sam2Config

FEW, MANY = 10, 1000
SPEC = FeatureSpec(teacher="digest", layer="bytes", channels=1, grid=(16, 16))
ROW_BYTES = 512
# Three in a hundred of the time that a shard of 1,000 pictures takes at 350 pictures a second.
MOST_SECONDS_A_SHARD = 0.03 * 1000 / 350


class Digests(MapStage):
    """A row of 512 bytes for each key: work that takes no time, on rows that would be noticed if they were kept."""

    def table(self) -> Table:
        return tables.features(SPEC)

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        return digests


def digests(inputs: Tables) -> pa.Table:
    keys = inputs["prompts"].column("image_key").to_pylist()
    made = [hashlib.shake_256(key.encode()).digest(ROW_BYTES) for key in keys]
    map_of = {"height": 16, "width": 16, "size": ROW_BYTES}
    rows = [{"image_key": key, **map_of, "crc": zlib.crc32(row), "feature": row} for key, row in zip(keys, made, strict=True)]
    return tables.features(SPEC).rows(rows)


def keys(folder: Path, shards: int, rows: int) -> Artifact:
    """Input of `shards` shards of `rows` keys each. They are one file under many names, which is quick to make."""
    made = Artifact(Folder(str(folder)), {"rows": rows}, tables.PROMPTS, shards)
    made.write(0, tables.PROMPTS.rows([{"image_key": f"{row:032x}", "prompts": []} for row in range(rows)]))
    for number in range(1, shards):
        os.link(folder / made.shard_name(0), folder / made.shard_name(number))
    return made


def work(folder: Path, shards: int, rows: int, resources: Resources) -> Work:
    """The output goes by the identity of real features: every shard carries it, so its length matters."""
    prompts = keys(folder / "prompts", shards, rows)
    config = FeaturesStage(name="sam2", teacher=Sam2Config(), grid=SPEC.grid).identity()
    identity = {"stage": "features", "config": config, "inputs": {"prompts": prompts.fingerprint}}
    output = Artifact(Folder(str(folder / "made")), identity, tables.features(SPEC), shards)
    return Work(Digests(), {"prompts": prompts}, {}, output, resources)


def bare_loop(todo: Work) -> None:
    source, target = Path(todo.inputs["prompts"].where), Path(todo.output.where)
    target.mkdir()
    for number in range(todo.output.shards):
        rows = digests({"prompts": pq.ParquetFile(source / f"shard-{number:05d}.parquet").read()})
        with pa.ipc.new_file(target / f"shard-{number:05d}.arrow", rows.schema) as file:
            file.write_table(rows)


def store_loop(todo: Work) -> None:
    for number in range(todo.output.shards):
        make_shard(digests, todo.inputs, todo.output, number)


def engine(todo: Work) -> None:
    run_map(todo, lambda done, total, unit, note="": None)


def seconds(folder: Path, shards: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a shard, round by round, of each way to make the same shards; every time into an empty folder."""
    ways: dict[str, Callable[[Work], None]] = {"bare loop": bare_loop, "loop over the store": store_loop, "engine": engine}

    def fresh(name: str) -> Callable[[], None]:
        todos = iter([work(folder / f"{name}-{n}", shards, FEW, Resources(executor="local")) for n in range(rounds)])
        return lambda: ways[name](next(todos))

    times = interleaved({name: fresh(name) for name in ways}, rounds)
    return {name: [taken / shards for taken in rounds] for name, rounds in times.items()}


def case(folder: str, executor: str, workers: str, shards: str, rows: str) -> None:
    """Run the stage and seal its artifact in this process; print how long it took and the most memory it held."""
    resources = Resources.model_validate({"executor": executor, "workers": int(workers)})
    todo = work(Path(folder), int(shards), int(rows), resources)
    moments = [time.perf_counter()]
    run_map(todo, lambda done, total, unit, note="": moments.append(time.perf_counter()))
    todo.output.seal("", "", todo.inputs, code="", packages={})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "linux" else 1024) / 1024
    pace = (moments[-1] - moments[1]) / max(1, len(moments) - 2)
    first = moments[1] - moments[0]
    print(json.dumps({"first shard s": first, "then s/shard": pace, "peak MiB": round(peak, 1)}))


def in_its_own_process(folder: Path, executor: str, workers: int, shards: int, rows: int) -> dict[str, Any]:
    """What `case` printed. Ray's workers find the stage by the same path as the process itself."""
    rooms = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", "import sys, bench_overhead; bench_overhead.case(*sys.argv[1:])"]
    given = [str(folder / f"{executor}-{shards}-{rows}"), executor, str(workers), str(shards), str(rows)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(rooms)}
    done = subprocess.run([*command, *given], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    told = {"case": f"{executor}, {workers} worker(s)", "shards": shards, "rows a shard": rows}
    return {**told, **json.loads(done.stdout.splitlines()[-1])}


def measure(folder: Path, *, shards: int, many_shards: int, rounds: int, workers: int) -> Result:
    sizes = [("local", 1, shards, FEW), ("local", 1, shards, MANY), ("local", 1, many_shards, FEW)]
    sizes += [("ray", workers, max(2, shards // 4), rows) for rows in (FEW, MANY)] if workers else []
    table = [in_its_own_process(folder, *size) for size in sizes]
    few, many, wide = (row["peak MiB"] for row in table[:3])
    paces = seconds(folder, max(2, shards // 10), rounds)
    over = statistics.median(ours - bare for ours, bare in zip(paces["engine"], paces["bare loop"], strict=True))
    return Result(
        [
            Bar("seconds a shard over the bare loop", over, at_most=MOST_SECONDS_A_SHARD),
            Bar(f"peak memory, {MANY} rows a shard / {FEW}", many / few, at_most=1.1),
            Bar("KiB of peak memory a further shard", 1024 * (wide - few) / (many_shards - shards), at_most=8),
        ],
        table,
        {f"{name}, s/shard": statistics.median(taken) for name, taken in paces.items()},
    )


if __name__ == "__main__":
    main(
        "overhead",
        measure,
        shards=(1000, "shards"),
        many_shards=(10_000, "shards of the long run"),
        rounds=(10, "rounds of a tenth as many shards by each contender"),
        workers=(2, "Ray workers; 0 leaves Ray out"),
    )
