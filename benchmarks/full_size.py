"""The students of full size on a GPU, held against its limit and against the authors' way.

Ours: one packed row of `batch` samples from memory, with features as they are stored. The authors' way, rebuilt: the same
samples one at a time under a dense mask, their gradients summed, and in the step of each, in line, both teachers prepare the
picture and run at full size. In two things it is made faster than theirs: the language head reads supervised tokens only, and
the mask has the paper's stride. Weights are random, which costs the same.

How long training waits for data is measured in steps of ours of their own, whose batches come from a store through the loader,
on rows that nobody has read before; pictures are PNG files of noise. What a step holds of the GPU is asked of 8 pictures of
1024 x 1024.

A sample is a picture, about 200 tokens of text and two masks. MFU is what the student asks for, forward and backward
(student/training/flops.py), in the time of a step, of the dense bfloat16 peak that the maker names.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_loader import key_of, seal
from bench_step import Map, Scale, full, image_row, live_teachers, on_student_grid
from harness import Bar, Result, interleaved
from training import WARM, DenseStudent, Learner, best_flops, waited

from schemas import tables
from schemas.artifact import Artifact
from schemas.dialogue import Sample, Turn
from schemas.features import FeatureSpec
from schemas.regions import Rle, box_mask
from schemas.storage import Folder
from student.config import StudentConfig
from student.data.corpus import Corpus
from student.data.features import Column, Stored
from student.model import PixelSail
from student.sequence import Example, collate, encode
from student.training.flops import forward_flops, peak, training_flops
from student.vocabulary import Vocabulary

STUDENTS = {
    "0.5B": StudentConfig(),
    "3B": StudentConfig(layers=36, hidden=2048, heads=16, kv_heads=2, head_dim=128, ffn=11008),
}
PICTURES = ((640, 480), (1024, 1024))
MOST = {"0.5B": (16, 8), "3B": (8, 4)}  # samples of each picture
HELD = ("0.5B", (1024, 1024), 8)  # what 80 GB are to hold
READERS = 4  # as flows/configs/full_size.toml says
LOADED = 12  # the most steps of which the share of waiting is taken
TEXT = 200
QUESTION, ANSWER = "Please segment the left half of the picture.", "It is [SEG]."
CAPTION, TOLD = "Please describe the picture.", "Noise in all colours, from one border to the other."
OURS, AUTHORS = "packed, stored features", "authors' way"


class Wide(Vocabulary):
    """A small tokenizer with the table of a large one: rows cost what they cost, whether or not a text uses them."""

    rows = 151_668  # the words of Qwen2.5 and what Pixel-SAIL adds

    def __len__(self) -> int:
        return self.rows


@dataclass(frozen=True)
class Case:
    """A student, a size of picture and a batch."""

    student: str
    scale: Scale
    vocabulary: Vocabulary

    @property
    def batch(self) -> int:
        return self.scale.train.batch

    @property
    def picture(self) -> tuple[int, int]:
        return self.scale.width, self.scale.height

    def __str__(self) -> str:
        return f"{self.student}, {self.scale.width} x {self.scale.height}, batch {self.batch}"

    @cached_property
    def images(self) -> list[np.ndarray]:
        draw, shape = np.random.default_rng(0), (self.scale.height, self.scale.width, 3)
        return [draw.integers(0, 256, shape, dtype=np.uint8) for _ in range(self.batch)]

    @cached_property
    def specs(self) -> dict[str, FeatureSpec]:
        teachers = {"sam2": self.scale.sam2, "mask2former": self.scale.mask2former}
        return {
            name: FeatureSpec(teacher=name, layer="bench", channels=config.channels, grid=self.scale.grid(name))
            for name, config in teachers.items()
        }

    @cached_property
    def examples(self) -> list[Example]:
        return [self._example(image) for image in self.images]

    def _example(self, image: np.ndarray) -> Example:
        features = {name: self._features(spec) for name, spec in self.specs.items()}
        turns = [(turn.question, turn.answer) for turn in self.turns]
        settings = {"turns": turns, "image": image, "masks": self.masks, "features": features}
        return encode(self.vocabulary, self.scale.student, **settings)

    @cached_property
    def turns(self) -> list[Turn]:
        captions = round((TEXT - 2 * self._length(QUESTION, ANSWER)) / self._length(CAPTION, TOLD))
        return [*[Turn(QUESTION, ANSWER)] * 2, *[Turn(CAPTION, TOLD)] * captions]

    @cached_property
    def masks(self) -> list[np.ndarray]:
        """The left half and the right."""
        width, height = self.picture
        return [box_mask(box, height, width) for box in ((0, 0, width // 2, height), (width // 2, 0, width, height))]

    def _length(self, question: str, answer: str) -> int:
        return len(self.vocabulary.encode(f"<|im_start|>user\n{question}<|im_end|>\n{answer}<|endoftext|>"))

    def _features(self, spec: FeatureSpec) -> Stored:
        grid = spec.grid_of(*self.picture)
        return Stored(grid, torch.randn(spec.channels, *grid, generator=torch.Generator().manual_seed(0)).bfloat16())

    def learner(self, kind: type[PixelSail]) -> Learner:
        columns = {name: Column(spec) for name, spec in self.specs.items()}
        how = {"loss": self.scale.loss, "columns": columns, "device": self.scale.device, "precision": torch.bfloat16}
        return Learner.of(kind, self.scale.student, self.vocabulary, **how)

    def corpus(self, folder: Path, pictures: int) -> Corpus:
        """So many of these samples in a store in `folder`, as the stages leave them."""
        seal(folder, "images", tables.IMAGES, pictures, lambda number: image_row(self.images[number % self.batch], number))
        seal(folder, "samples", tables.SAMPLES, pictures, self._sample)
        for name, spec in self.specs.items():
            values = self._features(spec).values.float().numpy()
            row = lambda number, spec=spec, values=values: tables.feature_row(spec, key_of(number), values)  # noqa: E731
            seal(folder, f"features/{name}", tables.features(spec), pictures, row)
        named = {name: Artifact.sealed(Folder(str(folder / name)), name) for name in ("images", "samples")}
        features = {name: Artifact.sealed(Folder(str(folder / "features" / name)), name) for name in self.specs}
        return Corpus(**named, features=features, vocabulary=self.vocabulary, config=self.scale.student)

    def _sample(self, number: int) -> dict[str, Any]:
        masks = list(map(Rle.of, self.masks))
        return tables.plain(Sample(f"{number}", key_of(number), "train", "segmentation", self.turns, masks))

    def ours(self, folder: Path, rounds: int) -> dict[str, Any]:
        """The row of a step that has its batch in hand, and how long one would wait for it."""
        batch, learner, steps = collate(self.examples), self.learner(PixelSail), min(rounds, LOADED)
        row = self.row(OURS, lambda: learner.learn(batch), rounds)
        with tempfile.TemporaryDirectory(dir=folder) as store:
            corpus = self.corpus(Path(store), (WARM + steps) * self.batch)
            return row | {"waiting": waited(learner, corpus, steps, batch=self.batch, readers=READERS)}

    def authors(self, maps: Mapping[str, Map]) -> Callable[[], None]:
        learner, pairs = (
            self.learner(DenseStudent),
            [(image, collate([e])) for image, e in zip(self.images, self.examples, strict=True)],
        )
        seen = lambda image: (on_student_grid(self.scale, maps, image),)  # noqa: E731
        return lambda: learner.learn(*(replace(single, features=seen(image)) for image, single in pairs))

    def row(self, way: str, step: Callable[[], None], rounds: int) -> dict[str, Any]:
        """What `rounds` steps came to, after two in which memory is taken and kernels are chosen."""
        batch, config, device = collate(self.examples), self.scale.student, self.scale.device
        interleaved({way: step}, 2)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = statistics.median(interleaved({way: step}, rounds)[way])
        pace = training_flops(config, batch, len(self.vocabulary)) / seconds
        return {
            "way": way,
            "samples/s": len(batch.spans) / seconds,
            "tokens/s": round(len(batch.tokens_R) / seconds),
            "TFLOP/s": pace / 1e12,
            "MFU": pace / best(device),
            "GB": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0,
        }


def best(device: str) -> float:
    """Operations a second in bfloat16: as the maker says, or, of a device that is not known, of one large product."""
    return peak(device) or best_flops(device, torch.bfloat16, 8192 if device == "cuda" else 1024, 5)


def vocabulary() -> Vocabulary:
    return Wide.train([QUESTION, ANSWER, CAPTION, TOLD] * 4, 512, 15)


def cases(batch: int) -> list[Case]:
    """Every student with every picture, by `batch` samples a step where a GPU of 140 GB is thought to hold them."""
    words, found = vocabulary(), []
    for name, student in STUDENTS.items():
        for (width, height), most in zip(PICTURES, MOST[name], strict=True):
            scale = replace(full(min(batch, most)), student=student, width=width, height=height)
            found.append(Case(name, scale, words))
    return found


def measure_full(folder: Path, cases: Sequence[Case], rounds: int) -> Result:
    table, bars, shares = [], [], {}
    for case in cases:
        ours, theirs = rows_of(case, folder, rounds)
        table += [{"student, picture": str(case), **row} for row in (ours, theirs)]
        shares[f"operations, {case}"] = _shares(case)
        bars += bars_of(case, ours, theirs)
    return Result(bars, table, {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", **shares})


def rows_of(case: Case, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Ours, then the authors' way, which waits for its teachers and not for a loader; each takes its memory alone."""
    ours = case.ours(folder, rounds)
    maps, _ = live_teachers(case.scale)
    return [ours, case.row(AUTHORS, case.authors(maps), rounds) | {"waiting": "-"}]


def bars_of(case: Case, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Bar]:
    """What is asked of the 0.5B student; of the 3B nothing."""
    if case.student != "0.5B":
        return []
    bars = [
        Bar(f"MFU, {case}", ours["MFU"], at_least=0.40),
        Bar(f"samples/s, ours / authors' way, {case}", ours["samples/s"] / theirs["samples/s"], at_least=3.0),
        Bar(f"share of time waiting for data, {case}", ours["waiting"], at_most=0.02),
    ]
    is_held = (case.student, case.picture, case.batch) == HELD
    return bars + ([Bar(f"GB held, {case}", ours["GB"], at_most=80.0)] if is_held else [])


def _shares(case: Case) -> list[str]:
    """Where the operations of a forward pass are."""
    parts = forward_flops(case.scale.student, collate(case.examples), len(case.vocabulary))
    return [f"{part} {count / sum(parts.values()):.1%}" for part, count in parts.items()]
