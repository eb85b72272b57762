"""The students of full size on a GPU, held against its limit and against the authors' way.

Ours: one packed row of `batch` samples from memory, with features as they are stored. The authors' way, rebuilt: the same
samples one at a time under a dense mask, their gradients summed, and in the step of each, in line, both teachers prepare the
picture and run at full size. In two things it is made faster than theirs: the language head reads supervised tokens only, and
the mask has the paper's stride. Weights are random, which costs the same.

A sample is a picture, about 200 tokens of text and two masks. MFU is what the student asks for, forward and backward
(student/training/flops.py), in the time of a step, of the dense bfloat16 peak that the maker names.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from bench_step import Map, Scale, full, live_teachers, on_student_grid
from harness import Bar, Result, interleaved
from training import DenseStudent, Learner, best_flops

from schemas.features import FeatureSpec
from schemas.regions import box_mask
from student.config import StudentConfig
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
DIVIDED = {"0.5B": (1, 1), "3B": (2, 4)}  # the batch, for each picture, so that a GPU of 140 GB holds it
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

    scale: Scale
    vocabulary: Vocabulary

    @cached_property
    def images(self) -> list[np.ndarray]:
        draw, shape = np.random.default_rng(0), (self.scale.height, self.scale.width, 3)
        return [draw.integers(0, 256, shape, dtype=np.uint8) for _ in range(self.scale.train.batch)]

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
        height, width = image.shape[:2]
        left, right = (box_mask(box, height, width) for box in ((0, 0, width // 2, height), (width // 2, 0, width, height)))
        two = [(QUESTION, ANSWER)] * 2
        captions = round((TEXT - 2 * self._length(QUESTION, ANSWER)) / self._length(CAPTION, TOLD))
        features = {name: self._features(spec, width, height) for name, spec in self.specs.items()}
        turns = [*two, *[(CAPTION, TOLD)] * captions]
        settings = {"turns": turns, "image": image, "masks": [left, right], "features": features}
        return encode(self.vocabulary, self.scale.student, **settings)

    def _length(self, question: str, answer: str) -> int:
        return len(self.vocabulary.encode(f"<|im_start|>user\n{question}<|im_end|>\n{answer}<|endoftext|>"))

    def _features(self, spec: FeatureSpec, width: int, height: int) -> Stored:
        grid = spec.grid_of(width, height)
        return Stored(grid, torch.randn(spec.channels, *grid, generator=torch.Generator().manual_seed(0)).bfloat16())

    def learner(self, kind: type[PixelSail]) -> Learner:
        columns = {name: Column(spec) for name, spec in self.specs.items()}
        how = {"loss": self.scale.loss, "columns": columns, "device": self.scale.device, "precision": torch.bfloat16}
        return Learner.of(kind, self.scale.student, self.vocabulary, **how)

    def ours(self) -> Callable[[], None]:
        row, learner = collate(self.examples), self.learner(PixelSail)
        return lambda: learner.learn(row)

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


def rows_of(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Ours, then the authors' way; each takes its memory alone."""
    ours = case.row(OURS, case.ours(), rounds)
    maps, _ = live_teachers(case.scale)
    return [ours, case.row(AUTHORS, case.authors(maps), rounds)]


def measure_full(rounds: int, batch: int) -> Result:
    table, bars, shares = [], [], {}
    vocabulary = Wide.train([QUESTION, ANSWER, CAPTION, TOLD] * 4, 512, 15)
    for name, student in STUDENTS.items():
        for (width, height), parts in zip(PICTURES, DIVIDED[name], strict=True):
            what = f"{name}, {width} x {height}, batch {max(1, batch // parts)}"
            case = Case(replace(full(max(1, batch // parts)), student=student, width=width, height=height), vocabulary)
            ours, theirs = rows_of(case, rounds)
            table += [{"student, picture": what, **row} for row in (ours, theirs)]
            shares[f"operations, {what}"] = _shares(case)
            if name == "0.5B":
                bars.append(Bar(f"MFU, {what}", ours["MFU"], at_least=0.40))
                bars.append(
                    Bar(f"samples/s, ours / authors' way, {what}", ours["samples/s"] / theirs["samples/s"], at_least=3.0)
                )
            if name == "0.5B" and (width, height) == PICTURES[-1]:
                bars.append(Bar(f"GB held, {what}", ours["GB"], at_most=80.0))
    return Result(bars, table, {"device": torch.cuda.get_device_name(), **shares})


def _shares(case: Case) -> list[str]:
    """Where the operations of a forward pass are."""
    parts = forward_flops(case.scale.student, collate(case.examples), len(case.vocabulary))
    return [f"{part} {count / sum(parts.values()):.1%}" for part, count in parts.items()]
