"""What a project is measured by before it is run: some of its pictures, its own teachers, and the place where it will lie."""

import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any

from flows.config import Project
from flows.graph import Step
from flows.states import state_of
from schemas.artifact import Artifact
from schemas.storage import Folder
from stages.base import Resources, Stage
from stages.basis import some_pictures
from stages.endurance import Storage, storage_of
from stages.features import FeaturesStage
from stages.forecast import Range
from stages.pool import PoolStage
from stages.probe import PicturePace, StagePace, column_pace, in_new_processes, look_at, segments_pace
from stages.segments import SegmentsStage
from stages.sources.listing import listing
from stages.sources.shapes.config import ShapesConfig
from stages.sources.shapes.write import write_shapes


@dataclass(frozen=True)
class Pool:
    """The pictures that a project is about: how many, the bytes of a file, and how many of each (width, height), where that is
    known of all of them. `drawn` are the bytes, and the seconds, of a scene that is still to be drawn."""

    pictures: int
    file_bytes: Range
    sizes: Counter[tuple[int, int]] | None
    tried: list[dict[str, Any]]
    pace: PicturePace
    drawn: tuple[Range, Range] | None = None


@dataclass(frozen=True)
class Measured:
    """`stages`: one worker of each step that shows pictures to a teacher."""

    pool: Pool
    stages: dict[str, StagePace]
    storage: Storage


def measure(project: Project, steps: Sequence[Step], found: Mapping[str, Artifact], count: int, most: int) -> Measured:
    """Try `count` pictures, every teacher of a step, and the workspace's file system with at most `most` bytes."""
    pool = _pool(project, steps, found, count)
    stages: dict[str, StagePace] = {}
    for step in steps:
        match stage := _untaught(step, found):
            case FeaturesStage():
                stages[step.name] = in_new_processes(column_pace, stage, step.resources, pool.tried, together(step.resources))
            case SegmentsStage(teacher=teacher) if teacher:
                stages[step.name] = in_new_processes(segments_pace, stage, step.resources, pool.tried, together(step.resources))
            case _:
                pass
    return Measured(pool, stages, storage_of(Folder(project.workspace), most))


def _untaught(step: Step, found: Mapping[str, Artifact]) -> Stage:
    """The stage of a step, as it can be tried today: a teacher that has not been taught yet has random weights of its sizes,
    which take it as long."""
    network = step.stage.opens()
    if network is None or not network.is_taught or state_of(found[step.roles["weights"]]).kind == "done":
        return step.stage
    return step.stage.model_copy(update={"teacher": network.model_copy(update={"weights": "random"})})


def _pool(project: Project, steps: Sequence[Step], found: Mapping[str, Artifact], count: int) -> Pool:
    """From the pool, where it has been made; else from the files of the source; else from scenes that are drawn for this."""
    if state_of(found["images"]).kind == "done":
        return _of_images(found["images"], count)
    if isinstance(project.source, ShapesConfig):
        return _of_scenes(project.source, count)
    stage = next(step.stage for step in steps if step.name == "images")
    assert isinstance(stage, PoolStage)
    files = listing(stage.images)
    some = files[:: -(-len(files) // count)]
    tried, pace = look_at([file.read for file in some])
    return Pool(len(files), Range.exactly(sum(file.size for file in files) / len(files)), None, tried, pace)


def _of_images(images: Artifact, count: int) -> Pool:
    record = images.record()
    assert record is not None
    sizes: Counter[tuple[int, int]] = Counter()
    for rows in images.iterate(["width", "height", "error"]):
        good = rows.filter(rows.column("error").is_null())
        sizes.update(zip(good.column("width").to_pylist(), good.column("height").to_pylist(), strict=True))
    tried, pace = look_at([partial(row.__getitem__, "bytes") for row in some_pictures(images, count)])
    return Pool(sizes.total(), Range.exactly(record.total_bytes / max(record.rows, 1)), sizes, tried, pace)


def _of_scenes(config: ShapesConfig, count: int) -> Pool:
    """A scene follows from its number, so the first ones of the project are drawn into memory, and dropped again."""
    folder, moments = Folder(f"memory://sailyard-probe-{uuid.uuid4().hex}"), [perf_counter()]
    pictures = config.train + config.evaluation
    some = config.model_copy(update={"train": min(count, pictures), "evaluation": 0})
    try:
        names = write_shapes(some, folder, lambda done, total: moments.append(perf_counter()))
        sizes = folder.tree()
        files = [name for name in names if name.startswith("train/")]
        tried, pace = look_at([partial(folder.read, name) for name in files])
    finally:
        folder.remove()
    beside = (sum(sizes.values()) - sum(sizes[name] for name in files)) / some.train
    bytes_each = Range.mean_of([sizes[name] + beside for name in files])
    seconds_each = Range.mean_of([after - before for before, after in pairwise(moments)])
    known = Counter({(config.size, config.size): pictures})
    return Pool(pictures, Range.mean_of([sizes[name] for name in files], 0.0), known, tried, pace, (bytes_each, seconds_each))


def hands(resources: Resources) -> int:
    """How many workers compute at a time; on this machine alone, no more than there are cores for."""
    if resources.executor == "ray" and (resources.gpus or resources.ray_address):
        return resources.workers
    return together(resources)


def together(resources: Resources) -> int:
    """How many workers share this machine's cores, or one of its devices."""
    if resources.executor == "local":
        return 1
    room = 1 / resources.gpus if resources.gpus else (os.cpu_count() or 1) / resources.threads
    return max(1, min(resources.workers, int(room)))
