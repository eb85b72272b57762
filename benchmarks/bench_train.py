"""A training step of the student by itself: packed rows against dense padded batches, and how near the machine's limit it is.

A step is forward, all losses with distillation from stored features, backward and optimizer. Both forms are given the same
samples with the same weights; that their losses are the same is checked before anything is timed.

On a CPU the student is that of the quickstart, with its batch of 16 in one piece and on one thread. The dialogues have as many
turns as there, one to eight of about eighteen tokens, three of four of segmentation; the pictures have the aspects of
photographs and long sides of 64 to 128, where all of the quickstart's are squares of 128. No step sees samples that another has
seen: on a CPU some kernels are compiled for each new size of a batch, and training pays for that too. Where CUDA is, the
students are the full ones (full_size.py).

MFU is what the student asks for (student/training/flops.py) in the time of a step, of what one large product of matrices
reaches in the same precision on the same threads.
"""

import io
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_loader import key_of, seal
from harness import Bar, Result, interleaved, main, speed
from PIL import Image
from training import STUDENT, DenseStudent, Learner, best_flops, padded, waited

from schemas import tables
from schemas.artifact import Artifact
from schemas.dialogue import Sample, Turn
from schemas.features import FeatureSpec
from schemas.grids import PatchGrid
from schemas.regions import Rle, box_mask
from schemas.storage import Folder
from student.config import LossConfig, TeacherLoss
from student.data.corpus import Corpus
from student.data.mixture import Order
from student.model import PixelSail
from student.sequence import Batch, collate
from student.training.flops import training_flops
from student.vocabulary import Vocabulary

QUESTIONS = ("Please segment the small green triangle right of the red cross here.", "Please segment the blue ring here.")
ANSWER, ASKED, TOLD = "It is [SEG].", "Please describe the picture.", "A red cross, a blue ring and a small green triangle."
VOCABULARY = Vocabulary.train([*QUESTIONS, ANSWER, ASKED, TOLD] * 4, 512, 15)
TURNS = (8, 2, 8, 7, 5, 1, 8, 3, 2, 6, 8, 4, 1, 2, 8, 7)  # as often as in the quickstart
SIZES = ((128, 96), (80, 64), (96, 128), (64, 48), (128, 128))  # width, height
READS = {"sam2": TeacherLoss(reads="patches"), "mask2former": TeacherLoss(reads="mask_features")}
LOSS = LossConfig(points=512, distillation=READS)
FEATURES = {
    name: FeatureSpec(teacher=name, layer="bench", channels=32, grid=PatchGrid(patch=16, max_side=128, cells=cells))
    for name, cells in (("sam2", 1), ("mask2former", 4))
}
FORMS: dict[str, type[PixelSail]] = {"packed": PixelSail, "dense": DenseStudent}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Pairs = list[dict[str, Batch]]  # form -> the batch in it


def write_store(folder: Path, pictures: int) -> None:
    random = np.random.default_rng(0)
    seal(folder, "images", tables.IMAGES, pictures, partial(_image, random))
    seal(folder, "samples", tables.SAMPLES, pictures, _sample)
    for name, spec in FEATURES.items():
        made = lambda n, spec=spec: tables.feature_row(spec, key_of(n), _map(random, spec, n))  # noqa: E731
        seal(folder, f"features/{name}", tables.features(spec), pictures, made)


def _size(number: int) -> tuple[int, int]:
    return SIZES[number % len(SIZES)]


def _map(random: np.random.Generator, spec: FeatureSpec, number: int) -> np.ndarray:
    return random.standard_normal((spec.channels, *spec.grid_of(*_size(number))), np.float32)


def _image(random: np.random.Generator, number: int) -> dict[str, Any]:
    (width, height), data = _size(number), io.BytesIO()
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(data, "PNG", compress_level=1)
    row = {"image_key": key_of(number), "width": width, "height": height, "format": "PNG", "bytes": data.getvalue()}
    return row | {"sha256": "", "aliases": []}


def _sample(number: int) -> dict[str, Any]:
    """Three of four segment, as in the quickstart."""
    (width, height), count = _size(number), TURNS[number % len(TURNS)]
    if number % 4 == 3:
        return tables.plain(Sample(f"{number}", key_of(number), "train", "caption", [Turn(ASKED, TOLD)] * min(count, 2)))
    turns = [Turn(QUESTIONS[k % 2], ANSWER) for k in range(count)]
    boxes = [(k * width // 16, 0, k * width // 16 + width // 2, height) for k in range(count)]
    masks = [Rle.of(box_mask(box, height, width)) for box in boxes]
    return tables.plain(Sample(f"{number}", key_of(number), "train", "segmentation", turns, masks))


def open_corpus(folder: Path) -> Corpus:
    named = {name: Artifact.sealed(Folder(str(folder / name)), name) for name in ("images", "samples")}
    features = {name: Artifact.sealed(Folder(str(folder / "features" / name)), name) for name in FEATURES}
    return Corpus(**named, features=features, vocabulary=VOCABULARY, config=STUDENT)


def in_hand(corpus: Corpus, count: int, batch: int) -> Pairs:
    """The first batches of a run, in both forms."""
    order = Order(0, len(corpus))
    chosen = [corpus.examples(order.between(step * batch, (step + 1) * batch)) for step in range(count)]
    return [{"packed": collate(each), "dense": collate(padded(each, VOCABULARY.end_of_text))} for each in chosen]


def learner(corpus: Corpus, form: str, precision: str) -> Learner:
    how = {"loss": LOSS, "columns": corpus.columns, "precision": PRECISIONS[precision]}
    return Learner.of(FORMS[form], STUDENT, VOCABULARY, **how)


def check_equal(corpus: Corpus, pairs: Pairs) -> None:
    """Ends the benchmark where the two forms of a batch do not have the same losses and gradients."""
    for pair in pairs:
        learners = {form: learner(corpus, form, "float32") for form in FORMS}
        parts = {form: each.losses(pair[form]) for form, each in learners.items()}
        for form in FORMS:
            parts[form]["total"].backward()
        ours, theirs = ([p.grad for p in each.student.parameters()] for each in learners.values())
        torch.testing.assert_close(parts["packed"], parts["dense"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def case(folder: str, form: str, count: str, batch: str) -> None:
    """Train in this process; print the most memory it held, over what it held before."""
    torch.set_num_threads(1)
    corpus = open_corpus(Path(folder))
    batches, student = [pair[form] for pair in in_hand(corpus, int(count), int(batch))], learner(corpus, form, "bfloat16")
    before = _resident("VmRSS")
    for batch in batches:
        student.learn(batch)
    print(_resident("VmHWM") - before)


def _resident(kind: str) -> int:
    (kib,) = re.findall(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kib) * 1024


def memory(folder: Path, form: str, *sizes: int) -> int:
    """What `case` printed in a process of its own."""
    rooms = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [
        sys.executable,
        "-c",
        "import sys, bench_train; bench_train.case(*sys.argv[1:])",
        str(folder),
        form,
        *map(str, sizes),
    ]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(rooms)}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def measure(folder: Path, *, rounds: int, batch: int) -> Result:
    if torch.cuda.is_available():
        from full_size import cases, measure_full

        return measure_full(folder, cases(batch), rounds)
    torch.set_num_threads(1)
    write_store(folder, (rounds + 1) * batch)
    corpus = open_corpus(folder)
    pairs = in_hand(corpus, rounds + 1, batch)
    check_equal(corpus, pairs[:2])
    ways = contenders(corpus, pairs)
    interleaved(ways, 1)  # memory is taken in the first step
    times = interleaved(ways, rounds)
    peaks = {precision: best_flops("cpu", dtype, 1024, 20) for precision, dtype in PRECISIONS.items()}
    memories = {form: memory(folder, form, min(rounds, 4), batch) for form in FORMS}
    ratios = {precision: speed(times, f"packed, {precision}", f"dense, {precision}") for precision in PRECISIONS}
    waiting = waited(learner(corpus, "packed", "bfloat16"), corpus, rounds, batch=batch, readers=2)
    bars = [
        Bar("step, packed / dense, float32", ratios["float32"], at_least=1.5),
        Bar("share of time waiting for data", waiting, at_most=0.02),
    ]
    facts = {
        "packed / dense, bfloat16": ratios["bfloat16"],
        "bfloat16 / float32, packed": speed(times, "packed, bfloat16", "packed, float32"),
        "tokens a batch": [f"{form} {tokens(pairs, form):.0f}" for form in FORMS],
        "peak memory of a step in bfloat16, MiB": [f"{form} {held / 2**20:.0f}" for form, held in memories.items()],
        "GFLOP/s of a product of 1024 x 1024": [f"{name} {peak / 1e9:.0f}" for name, peak in peaks.items()],
    }
    return Result(bars, [_row(way, taken, pairs, peaks) for way, taken in times.items()], facts)


def contenders(corpus: Corpus, pairs: Pairs) -> dict[str, Callable[[], None]]:
    """Each takes one batch after the other; in a round all have the same."""
    ways = {}
    for precision in PRECISIONS:
        for form in FORMS:
            student, turns = learner(corpus, form, precision), iter(pairs)
            ways[f"{form}, {precision}"] = lambda student=student, turns=turns, form=form: student.learn(next(turns)[form])
    return ways


def tokens(pairs: Pairs, form: str) -> float:
    return statistics.mean(len(pair[form].tokens_R) for pair in pairs)


def _row(way: str, taken: Sequence[float], pairs: Pairs, peaks: Mapping[str, float]) -> dict[str, Any]:
    """The pace of one contender; tokens are those of the samples, also where others stand beside them."""
    seconds, samples = statistics.median(taken), len(pairs[0]["packed"].spans)
    asked = [training_flops(STUDENT, pair["packed"], len(VOCABULARY)) for pair in pairs[1:]]
    pace = statistics.median(work / second for work, second in zip(asked, taken, strict=True))
    return {
        "way": way,
        "ms/step": round(1000 * seconds, 1),
        "samples/s": round(samples / seconds, 1),
        "tokens/s": round(tokens(pairs, "packed") / seconds),
        "GFLOP/s": round(pace / 1e9, 1),
        "MFU": round(pace / peaks[way.split()[1]], 3),
    }


if __name__ == "__main__":
    main("train", measure, rounds=(40, "steps by each contender"), batch=(16, "samples a step, on a GPU at most"))
