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
from stages.probe_train import Dialogues, train_pace
from stages.segments import SegmentsStage
from stages.sources.listing import listing
from stages.sources.shapes.config import ShapesConfig
from stages.sources.shapes.write import write_shapes
from stages.train import TrainStage
from stages.vocabulary import FILE as VOCABULARY
from stages.vocabulary import base_digest
from stages.weights import ABSENT


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
    """`stages`: one worker of each step that shows pictures to a teacher, and of training. `evaluated`: how many samples the
    student is asked, where they are there to be counted."""

    pool: Pool
    stages: dict[str, StagePace]
    storage: Storage
    evaluated: int | None = None


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
            case TrainStage() if learns_here(stage):
                dialogues = _dialogues(project, steps, found, pool)
                stages[step.name] = in_new_processes(train_pace, stage, step.resources, dialogues, together(step.resources))
            case _:
                pass
    return Measured(pool, stages, storage_of(Folder(project.workspace), most), _evaluated(found))


def learns_here(stage: TrainStage) -> bool:
    """Whether its vocabulary can be had on this machine: that of a base lies in the folder of the base."""
    return stage.base is None or base_digest(stage.base, weights=False) != ABSENT


def _dialogues(project: Project, steps: Sequence[Step], found: Mapping[str, Artifact], pool: Pool) -> Dialogues:
    """What training is tried on: the project's own where samples and vocabulary are there."""
    taught = project.loss.distillation
    specs = {step.stage.name: step.stage.spec for step in steps if isinstance(step.stage, FeaturesStage)}
    wanted = {name: spec for name, spec in specs.items() if name in taught}
    if not all(state_of(found[name]).kind == "done" for name in ("images", "samples", "vocabulary")):
        return Dialogues(pool.tried, wanted, project.vocabulary.size, project.samples.turns)
    vocabulary = found["vocabulary"].folder.read(VOCABULARY).decode()
    rows, times = _trained_on(project, found["samples"], {picture["image_key"] for picture in pool.tried})
    return Dialogues(pool.tried, wanted, vocabulary, project.samples.turns, rows, times)


def _trained_on(project: Project, samples: Artifact, keys: set[str]) -> tuple[list[dict[str, Any]], list[float]]:
    """The samples about these pictures that train, and how often an epoch shows each."""
    sizes: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for shard in range(samples.shards):
        heads = samples.read(shard, ["image_key", "split", "task", "source"]).to_pylist()
        train = [number for number, head in enumerate(heads) if head["split"] == "train"]
        sizes.update(_part_of(heads[number]) for number in train)
        wanted = [number for number in train if heads[number]["image_key"] in keys]
        rows += samples.read(shard).take(wanted).to_pylist() if wanted else []
    often = project.train.mixture.times(sizes)
    return rows, [often[_part_of(row)] for row in rows]


def _part_of(sample: Mapping[str, Any]) -> str:
    """What the mixture calls the part of a row of SAMPLES."""
    return f"{sample['task']}/{sample['source']}" if sample["source"] else sample["task"]


def _evaluated(found: Mapping[str, Artifact]) -> int | None:
    if state_of(found["samples"]).kind != "done":
        return None
    return sum(rows.column("split").to_pylist().count("evaluation") for rows in found["samples"].iterate(["split"]))


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
