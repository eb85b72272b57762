"""What this machine takes for a picture: read, decoded, shown to each teacher, encoded, put into a shard. Measured, on a few.

Each teacher is measured in a process of its own, which is new: the peak of its memory is the teacher's, and whoever asks
needs neither torch nor that memory.
"""

import resource
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from schemas.annotations import STATEMENTS
from schemas.artifact import Artifact
from schemas.codecs import Basis
from schemas.errors import DataError, StageFailed
from schemas.pictures import decode, examine, image_key
from schemas.storage import Folder
from schemas.tables import ANNOTATIONS, IMAGES, Table
from stages.base import Resources, Stage
from stages.basis import Moments
from stages.features import FeaturesStage, Lane, at_once, extract
from stages.forecast import Range
from stages.segments import SegmentsStage
from teachers.base import Teacher
from teachers.memory import device_peak

T = TypeVar("T")
Picture = Mapping[str, Any]  # a row of IMAGES
Pictures = Sequence[Picture]
GROUPS = 8
MOST_TOGETHER = 8
FITTED = 4  # pictures that a basis is fitted on
MOST_KEPT = 256 << 20  # bytes of rows that a shard is tried with


@dataclass(frozen=True)
class PicturePace:
    """Seconds to look at a picture file (read, decode, take its key), and to decode it alone."""

    look: Range
    decode: Range


@dataclass(frozen=True)
class Overhead:
    """Bytes of a shard beside those of its rows: for each row, and once."""

    a_row: float
    a_shard: float


@dataclass(frozen=True)
class StagePace:
    """One worker of a stage: seconds until it is ready; seconds a picture, which add up, and of some of what is done for it,
    alone; the bytes of the rows that were made; and the most memory that was held, with next to no rows in it."""

    ready: float
    seconds: dict[str, Range]
    alone: dict[str, Range]
    row_bytes: list[int]
    overhead: Overhead
    memory: int
    device_memory: int


def look_at(files: Iterable[Callable[[], bytes]]) -> tuple[list[dict[str, Any]], PicturePace]:
    """Rows of IMAGES of those files that can be decoded, and the pace of this."""
    rows, looks, decodes = [], [], []
    for read in files:
        start = time.perf_counter()
        data = read()
        before = time.perf_counter()
        try:
            form, pixels_HWC = examine(data)
        except DataError:  # the run will give it a row with its error; of the pace it says nothing
            continue
        decodes.append(time.perf_counter() - before)
        height, width, _ = pixels_HWC.shape
        row = {"image_key": image_key(pixels_HWC), "width": width, "height": height, "format": form, "bytes": data}
        looks.append(time.perf_counter() - start)
        rows.append(row | {"sha256": "", "aliases": []})
    if not rows:
        raise DataError("none of the pictures that were tried can be decoded", remedy="Look at the files of the source.")
    # The first one loads the decoders.
    return rows, PicturePace(Range.mean_of(looks[1:] or looks), Range.mean_of(decodes[1:] or decodes))


def in_new_processes(
    work: Callable[..., StagePace], stage: Stage, resources: Resources, material: Any, together: int = 1
) -> StagePace:
    """What `work` found in each of so many processes that do it at a time, as workers on one machine do. material: pictures, or
    what else it is tried on."""
    count = min(together, MOST_TOGETHER)
    try:
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            start = time.perf_counter()
            wait([pool.submit(_imported, work.__module__) for _ in range(count)])
            started = time.perf_counter() - start
            found = [each.result() for each in [pool.submit(work, stage, resources, material) for _ in range(count)]]
    except BrokenProcessPool:
        remedy = "Look for memory exhaustion: its network may be more than this machine can hold."
        tried = type(stage).__name__.removesuffix("Stage").lower()
        raise StageFailed(f"a process that tried what {tried} takes died", remedy=remedy) from None
    return replace(
        found[0],
        ready=started + max(each.ready for each in found),
        seconds={part: Range.around([each.seconds[part] for each in found]) for part in found[0].seconds},
        alone={part: Range.around([each.alone[part] for each in found]) for part in found[0].alone},
        memory=max(each.memory for each in found),
        device_memory=max(each.device_memory for each in found),
    )


def _imported(module: str) -> None:
    """Have the libraries that `module` works with: those of every teacher, or those of the student."""
    if module == __name__:
        import teachers.extract  # noqa: F401
    else:
        import student.training.trial  # noqa: F401


def column_pace(stage: FeaturesStage, resources: Resources, pictures: Pictures) -> StagePace:
    """Of a stage of features: what its own function takes for a picture, and beside it the network and the codec alone."""
    from teachers.build import build_teacher

    on_cpu = resources.device == "cpu"
    ready, teacher = _timed(partial(build_teacher, stage.teacher, resources.device, resources.threads if on_cpu else 1))
    first = _maps(stage, teacher, pictures[:FITTED])  # the first calls warm up
    basis = _basis(stage, first)
    lane, pace = Lane(teacher, stage.spec, basis), at_once(resources)
    # A device has to be kept busy for a while before it shows its pace.
    groups = _groups(pictures) if on_cpu else [pictures] * GROUPS
    tried = _tried(lambda images: extract([lane], images, **pace)[0], groups)
    memory, on_device = peak_memory() - tried.rows.nbytes, device_peak(resources.device)
    publish, overhead = _published(stage.table(), tried.rows)
    alone = [_one_by_one(stage, teacher, basis, picture) for picture in pictures]
    by_part = {name: Range.mean_of([each[name] for each in alone]) for name in alone[0]}
    return StagePace(ready, {"extract": tried.each, "publish": publish}, by_part, tried.sizes, overhead, memory, on_device)


@dataclass(frozen=True)
class _Tried:
    """Seconds a picture, the bytes of all rows that came of it, and as many of the rows as may be kept."""

    each: Range
    sizes: list[int]
    rows: pa.Table


def _tried(make: Callable[[pa.Table], pa.Table], groups: Iterable[Pictures]) -> _Tried:
    seconds: list[float] = []
    sizes: list[int] = []
    kept: list[pa.Table] = []
    for group in groups:
        took, made = _timed(partial(make, _images(group)))
        failed = made.column("error").drop_null().to_pylist()
        if failed:
            raise StageFailed(f"{len(failed)} of {len(group)} pictures that were tried failed: {failed[0]}")
        seconds.append(took / len(group))
        sizes += made.column("size").to_pylist()
        if not kept or sum(sizes) <= MOST_KEPT:
            kept.append(made)
    return _Tried(Range.mean_of(seconds), sizes, pa.concat_tables(kept))


def _one_by_one(stage: FeaturesStage, teacher: Teacher, basis: Basis | None, picture: Picture) -> dict[str, float]:
    """Seconds of the network, and of the codec, for one picture."""
    pixels_HWC, grid = decode(picture["bytes"]), stage.spec.grid_of(picture["width"], picture["height"])
    forward, maps = _timed(partial(teacher.features, [pixels_HWC], [grid]))
    encode, _ = _timed(partial(stage.spec.encode, maps[0], picture["image_key"], basis))
    return {"forward": forward, "encode": encode}


def segments_pace(stage: SegmentsStage, resources: Resources, pictures: Pictures) -> StagePace:
    """Of a stage of proposals, by its own function."""
    ready, find = _timed(partial(stage.open, resources, {}))
    find(_inputs(pictures[:1]))  # the first call warms up
    made = [_timed(partial(find, _inputs(group))) for group in _groups(pictures)]
    memory, on_device = peak_memory(), device_peak(resources.device)
    publish, overhead = _published(stage.table(), pa.concat_tables([table.replace_schema_metadata() for _, table in made]))
    propose = Range.mean_of([each / len(table) for each, table in made])
    return StagePace(ready, {"propose": propose, "publish": publish}, {}, [0] * len(pictures), overhead, memory, on_device)


def _inputs(pictures: Pictures) -> dict[str, pa.Table]:
    """A shard of these pictures, of which nothing is said."""
    said: dict[str, Any] = {name: [] for name in ("objects", *STATEMENTS, "faults")}
    names = ("image_key", "width", "height")
    rows = [{name: picture[name] for name in names} | said for picture in pictures]
    return {"images": _images(pictures), "annotations": ANNOTATIONS.rows(rows)}


def _images(pictures: Pictures) -> pa.Table:
    return IMAGES.rows([dict(picture) for picture in pictures])


def _maps(stage: FeaturesStage, teacher: Teacher, pictures: Pictures) -> list[np.ndarray]:
    grids = [stage.spec.grid_of(picture["width"], picture["height"]) for picture in pictures]
    return teacher.features([decode(picture["bytes"]) for picture in pictures], grids)


def _basis(stage: FeaturesStage, maps: Sequence[np.ndarray]) -> Basis | None:
    """One that will do, where the codec needs one: to encode by it takes as long as by any."""
    if stage.spec.components is None:
        return None
    moments = Moments(stage.spec.channels)
    for map_Chw in maps:
        moments.add(map_Chw)
    return moments.basis(stage.spec.components)[0]


def _held(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(row["feature"]) for row in rows if "feature" in row)


def _groups(pictures: Pictures) -> list[Pictures]:
    """`GROUPS` of them or more, so that one sees how much they differ."""
    size = max(1, len(pictures) // GROUPS)
    return [pictures[at : at + size] for at in range(0, len(pictures), size)]


def _published(table: Table, rows: pa.Table) -> tuple[Range, Overhead]:
    """Seconds a row to make a shard of rows, but for sending it; and what it is larger than they are."""
    sizes = rows.column("size").to_pylist() if "size" in rows.schema.names else [0] * len(rows)
    store = Artifact(Folder(f"memory://sailyard-probe-{uuid.uuid4().hex}"), {}, table, 2)
    try:
        small = store.write(0, rows.slice(0, 1))
        times, parts = zip(*(_timed(partial(store.write, 1, rows)) for _ in range(3)), strict=True)
    finally:
        store.folder.remove()
    beside = parts[0].bytes - small.bytes - sum(sizes[1:])
    a_row = max(beside / (len(rows) - 1), 0.0) if len(rows) > 1 else 0.0
    return Range.mean_of([each / len(rows) for each in times]), Overhead(a_row, small.bytes - sizes[0] - a_row)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def peak_memory() -> int:
    """The most memory that this program has held. Linux hands `ru_maxrss` on to the programs that a process starts, so there
    it is read off the kernel's books; macOS counts it in bytes."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
