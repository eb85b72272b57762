"""What training takes on this machine, tried on a few dialogues: on the project's own where they lie there, else on some that
are made up about its pictures, once with as few turns as one may have and once with as many.
"""

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from schemas.artifact import Artifact
from schemas.codecs import Basis
from schemas.dialogue import Sample, Turn
from schemas.features import FeatureSpec
from schemas.grids import PatchGrid
from schemas.regions import Rle, box_mask
from schemas.storage import Folder
from schemas.tables import IMAGES, SAMPLES, Table, feature_row, features, plain
from stages.base import Resources
from stages.basis import Moments
from stages.forecast import Range
from stages.probe import Overhead, Picture, StagePace, peak_memory
from stages.train import TrainStage
from student.train_config import TrainConfig
from teachers.memory import device_peak

if TYPE_CHECKING:
    from student.training.trial import Trial

LEARN, LOAD, RECKONED, SAMPLE = "learn", "load", "learn, reckoned", "sample"
# What a student makes of the rate of one large product of matrices, where it was not tried.
SHARE = Range(0.2, 0.4, 0.6)
MOST_PICTURES = 8
KINDS = 4  # micro-batches of the project's own dialogues that are tried
_A_STEP = Range(300, 500, 1000)  # bytes of its row, in the metrics and in each checkpoint
QUESTION, ANSWER = "Please segment the {} {} in the picture.", "It is [SEG]."
COLOURS, THINGS = ("small red", "large blue", "yellow", "grey"), ("circle", "square", "dog on the left", "cup")


@dataclass(frozen=True)
class Dialogues:
    """What a student is tried on: rows of IMAGES, and those rows of SAMPLES about them that train, where there are any, each
    with how often an epoch shows it (`times`); else `turns` is the most that a dialogue may have. `vocabulary`: as JSON, or
    else the size that it shall have."""

    pictures: Sequence[Picture]
    specs: Mapping[str, FeatureSpec]
    vocabulary: str | int
    turns: int = 1
    samples: Sequence[Mapping[str, Any]] = ()
    times: Sequence[float] = ()


def train_pace(stage: TrainStage, resources: Resources, dialogues: Dialogues) -> StagePace:
    """Of one worker and one micro-batch; the bytes are those of all that a finished run leaves."""
    from student.data.corpus import Corpus
    from student.data.visits import Visit
    from student.training.trial import trial

    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sailyard-probe-") as place:
        vocabulary = _vocabulary(stage, dialogues)
        named, bases, kinds = _stored(Folder(place), stage, dialogues)
        corpus = Corpus(
            samples=named["samples"],
            images=named["images"],
            features={name: named[f"features/{name}"] for name in dialogues.specs},
            bases=bases,
            vocabulary=vocabulary,
            config=stage.student,
            pen=stage.train.pen,
        )
        setup = stage.setup(vocabulary, corpus, {}, resources)
        ready = time.perf_counter() - start
        found = trial(setup, [[Visit(number) for number in kind] for kind in kinds])
    return _pace(stage, resources, found, ready)


def _pace(stage: TrainStage, resources: Resources, found: "Trial", ready: float) -> StagePace:
    if found.learn:
        name, learn = LEARN, _spread(found.learn)
        memory, on_device = peak_memory(), device_peak(resources.device)
    else:
        name, learn = RECKONED, Range.around([Range.exactly(each) for each in found.products]).over(SHARE)
        memory, on_device = (found.memory, 0) if resources.device == "cpu" else (peak_memory(), found.memory)
    seconds, alone = {name: learn, LOAD: _spread(found.load)}, {SAMPLE: learn.over(stage.train.micro_batch)}
    files = Overhead(0, left_behind(stage.train, found.weights))
    return StagePace(ready, seconds, alone, [], files, memory, on_device)


def left_behind(config: TrainConfig, weights: int) -> int:
    """Bytes of the tensors of a finished run: the weights it began with, and the last checkpoints with two moments of each."""
    saved = min(config.keep, -(-config.steps // config.checkpoint_every))
    return 4 * weights * (1 + 3 * saved)


def history_bytes(config: TrainConfig) -> Range:
    """Of the rows of all steps: in the metrics, and in each checkpoint that is kept."""
    return _A_STEP.times(config.steps * (1 + min(config.keep, -(-config.steps // config.checkpoint_every))))


def _spread(kinds: Sequence[Sequence[float]]) -> Range:
    """From the least of all kinds to the most, and likely the mean."""
    return Range.around([Range.mean_of(seconds) for seconds in kinds])


def _vocabulary(stage: TrainStage, dialogues: Dialogues) -> Any:
    from student.vocabulary import Vocabulary
    from student.weights.base import locate

    prompts, pictures = stage.student.prompts, stage.student.names_pictures
    if isinstance(dialogues.vocabulary, str):
        return Vocabulary.from_json(dialogues.vocabulary)
    if stage.base:
        return Vocabulary.from_qwen(locate(stage.base), prompts, pictures)
    return Vocabulary.train(_texts(dialogues.vocabulary), dialogues.vocabulary, prompts, pictures)


def _texts(size: int) -> list[str]:
    """What the made up dialogues say, often, and so many odd words that a vocabulary of this size is filled."""
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, (size, 8), dtype=np.uint8)
    return [*_questions(16), ANSWER] * 16 + [word.tobytes().decode() for word in letters]


def _questions(count: int) -> list[str]:
    pairs = [(colour, thing) for thing in THINGS for colour in COLOURS]
    return [QUESTION.format(*pairs[number % len(pairs)]) for number in range(count)]


def _stored(
    folder: Folder, stage: TrainStage, dialogues: Dialogues
) -> tuple[dict[str, Artifact], dict[str, Basis], list[list[int]]]:
    """The tables of one shard in `folder`, a basis for each column that needs one, and the samples of each micro-batch."""
    pictures = list({picture["image_key"]: picture for picture in dialogues.pictures}.values())[:MOST_PICTURES]
    rng = np.random.default_rng(stage.train.seed)
    samples, kinds = _of_the_project(stage.train, pictures, dialogues, rng)
    if not samples:
        samples, kinds = _made_up(stage.train, pictures, dialogues.turns)
    made = {"images": _table(folder, "images", IMAGES, pictures), "samples": _table(folder, "samples", SAMPLES, samples)}
    bases: dict[str, Basis] = {}
    for name, spec in dialogues.specs.items():
        maps = [_map(stage, spec, picture, rng) for picture in pictures]
        basis = _basis(spec, maps)
        rows = [feature_row(spec, each["image_key"], map_Chw, basis) for each, map_Chw in zip(pictures, maps, strict=True)]
        made[f"features/{name}"] = _table(folder, f"features/{name}", features(spec), rows)
        bases |= {name: basis} if basis else {}
    return made, bases, kinds


def _table(folder: Folder, name: str, table: Table, rows: Sequence[Mapping[str, Any]]) -> Artifact:
    made = Artifact(folder.child(name), {}, table, 1, name)
    made.write(0, table.rows([dict(row) for row in rows]))
    return made


def _map(stage: TrainStage, spec: FeatureSpec, picture: Picture, rng: np.random.Generator) -> np.ndarray:
    """Noise, on the grid of the column; of the teacher's own nothing is known here, so the student's stands for it."""
    width, height = picture["width"], picture["height"]
    student = PatchGrid(patch=stage.student.patch, max_side=stage.student.max_side, cells=1)
    grid = spec.grid_of(width, height) or student.of(width, height)
    return rng.standard_normal((spec.channels, *grid), dtype=np.float32)


def _basis(spec: FeatureSpec, maps: Sequence[np.ndarray]) -> Basis | None:
    if spec.components is None:
        return None
    moments = Moments(spec.channels)
    moments.add(maps[0])
    return moments.basis(spec.components)[0]


def _of_the_project(
    config: TrainConfig, pictures: Sequence[Picture], dialogues: Dialogues, rng: np.random.Generator
) -> tuple[Sequence[Mapping[str, Any]], list[list[int]]]:
    """The samples about these pictures, in their order, and micro-batches of them drawn as often as an epoch shows each."""
    place = {picture["image_key"]: number for number, picture in enumerate(pictures)}
    pairs = zip(dialogues.samples, dialogues.times, strict=True)
    known = sorted(
        ((row, times) for row, times in pairs if row["image_key"] in place and times),
        key=lambda each: place[each[0]["image_key"]],
    )
    if not known:
        return [], []
    chance = np.array([times for _, times in known])
    chosen = rng.choice(len(known), (KINDS, config.micro_batch), p=chance / chance.sum())
    return [row for row, _ in known], chosen.tolist()


def _made_up(
    config: TrainConfig, pictures: Sequence[Picture], turns: int
) -> tuple[Sequence[Mapping[str, Any]], list[list[int]]]:
    """Of each picture a dialogue of one turn and one of `turns`, each turn with a mask; a micro-batch of either."""
    lengths = sorted({1, turns})
    rows = [_sample(picture, count) for picture in pictures for count in lengths]
    numbers = [number % len(pictures) * len(lengths) for number in range(config.micro_batch)]
    return rows, [[number + kind for number in numbers] for kind in range(len(lengths))]


def _sample(picture: Picture, turns: int) -> dict[str, Any]:
    width, height, key = picture["width"], picture["height"], picture["image_key"]
    box = (0, 0, math.ceil(width / 2), math.ceil(height / 2))
    mask = Rle.of(box_mask(box, height, width))
    said = [Turn(question, ANSWER) for question in _questions(turns)]
    return plain(Sample(f"{key}-{turns}", key, "train", "segmentation", said, [mask] * turns))
