"""A training step that reads its teachers' features against one in which the teachers themselves run.

Live is the authors' way: in the step, one picture at a time, each teacher prepares the picture and runs, Mask2Former with
the transformer decoder that nobody reads; maps are brought to the student's grid on the device. Stored are the same maps in
the default form, bfloat16 on the student's grid. Student, batch, and what threads load ahead are the same in both. The floor is
the same step over a batch that is already there.

On a CPU the student is that of the quickstart, the teachers are micro networks, and the ratio is theirs. Where CUDA is, the
student is the 0.5B one, the teachers are SAM 2.1 large and Mask2Former Swin-L at full size; weights are random, which costs
the same.
"""

import io
import statistics
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_loader import key_of, seal
from harness import Bar, Result, interleaved, main, speed
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from training import STUDENT

from schemas import tables
from schemas.artifact import Artifact
from schemas.dialogue import Sample, Turn
from schemas.features import FeatureSpec
from schemas.grids import PatchGrid
from schemas.regions import Rle, box_mask
from schemas.storage import Folder
from student.config import LossConfig, OptimConfig, StudentConfig, TeacherLoss
from student.data.ahead import ahead
from student.data.corpus import Corpus
from student.data.features import Stored
from student.data.mixture import Order
from student.data.visits import Visit
from student.losses import Distillation
from student.sequence import Batch, collate
from student.train_config import TrainConfig
from student.training import optim
from student.training.run import Run, TrainSetup, initial_student
from student.vocabulary import Vocabulary
from teachers.config import Mask2FormerConfig, Sam2Config
from teachers.mask2former import network as mask2former
from teachers.mask2former.config import PRESETS as MASK2FORMERS
from teachers.pixels import precision
from teachers.sam2 import network as sam2
from teachers.sam2.config import PRESETS as SAM2S

QUESTION, ANSWER = "Please segment the left half.", "It is [SEG]."
VOCABULARY = Vocabulary.train([QUESTION, ANSWER] * 4, 300, 15)
READS = {"sam2": TeacherLoss(reads="patches"), "mask2former": TeacherLoss(reads="mask_features")}
AHEAD, READERS = 2, 2
Map = Callable[[np.ndarray], Tensor]  # a picture (H, W, 3) -> the teacher's map (1, C, h, w), on its device


@dataclass(frozen=True)
class Scale:
    """Who learns from whom, and where."""

    device: str
    student: StudentConfig
    loss: LossConfig
    train: TrainConfig
    sam2: Sam2Config
    mask2former: Mask2FormerConfig
    width: int
    height: int

    def grid(self, name: str) -> PatchGrid:
        """The student's cells that the teacher is held against."""
        cells = 1 if READS[name].reads == "patches" else self.student.patch // self.student.mask_stride
        return PatchGrid(patch=self.student.patch, max_side=self.student.max_side, cells=cells)


def micro(batch: int) -> Scale:
    return Scale(
        device="cpu",
        student=STUDENT,
        loss=LossConfig(points=512, distillation=READS),
        train=TrainConfig(batch=batch, micro_batch=batch),
        sam2=Sam2Config(),
        mask2former=Mask2FormerConfig(),
        width=128,
        height=96,
    )


def full(batch: int) -> Scale:
    sizes = {"image_size": 1024, "channels": 256, "dtype": "bfloat16"}
    edges = {"shortest_edge": 800, "longest_edge": 1333, "channels": 256, "dtype": "bfloat16"}
    return Scale(
        device="cuda",
        student=StudentConfig(),
        loss=LossConfig(distillation=READS),
        train=TrainConfig(batch=batch, micro_batch=batch, precision="bfloat16"),
        sam2=Sam2Config(**sizes, sizes=SAM2S["facebook/sam2.1-hiera-large"]["sizes"]),
        mask2former=Mask2FormerConfig(**edges, sizes=MASK2FORMERS["facebook/mask2former-swin-large-coco-panoptic"]["sizes"]),
        width=640,
        height=480,
    )


def live_teachers(scale: Scale) -> tuple[dict[str, Map], int]:
    """As the authors run them, and how many weights they have."""
    device = scale.device
    eye, whole = sam2.Sam2Features(scale.sam2, device), mask2former.load(scale.mask2former).to(device)

    @torch.no_grad()
    def embedding(image: np.ndarray) -> Tensor:
        with precision(scale.sam2.dtype, device):
            return eye.maps(eye.prepare(image)[None].to(device)).float()

    @torch.no_grad()
    def mask_features(image: np.ndarray) -> Tensor:
        with precision(scale.mask2former.dtype, device):
            seen = mask2former.preprocess(image, scale.mask2former).to(device)
            return whole.model(seen, output_hidden_states=True).pixel_decoder_last_hidden_state.float()

    return {"sam2": embedding, "mask2former": mask_features}, _weights(sam2.load(scale.sam2)) + _weights(whole)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_student_grid(scale: Scale, maps: Mapping[str, Map], image: np.ndarray) -> dict[str, Stored]:
    """What the loss takes of a picture, on the device."""
    found = {}
    for name, map_of in maps.items():
        grid = scale.grid(name).of(image.shape[1], image.shape[0])
        resized_1Chw = F.interpolate(map_of(image), size=grid, mode="bilinear", align_corners=False)
        found[name] = Stored(grid, resized_1Chw[0].to(torch.bfloat16))
    return found


def write_store(folder: Path, scale: Scale, maps: Mapping[str, Map], pictures: int) -> None:
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (scale.height, scale.width, 3), dtype=np.uint8) for _ in range(pictures)]
    seal(folder, "images", tables.IMAGES, pictures, lambda n: image_row(images[n], n))
    seal(folder, "samples", tables.SAMPLES, pictures, lambda n: _sample(scale, n))
    seen = [{name: _numbers(each) for name, each in on_student_grid(scale, maps, image).items()} for image in images]
    for name in maps:
        spec = FeatureSpec(teacher=name, layer="live", channels=len(seen[0][name]), grid=scale.grid(name))
        made = lambda n, spec=spec, name=name: tables.feature_row(spec, key_of(n), seen[n][name])  # noqa: E731
        seal(folder, f"features/{name}", tables.features(spec), pictures, made)


def _numbers(stored: Stored) -> np.ndarray:
    return stored.values.float().cpu().numpy()


def image_row(image: np.ndarray, number: int) -> dict[str, Any]:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG", compress_level=1)
    row = {"image_key": key_of(number), "width": image.shape[1], "height": image.shape[0], "format": "PNG"}
    return row | {"bytes": data.getvalue(), "sha256": "", "aliases": []}


def _sample(scale: Scale, number: int) -> dict[str, Any]:
    left = Rle.of(box_mask((0, 0, scale.width // 2, scale.height), scale.height, scale.width))
    return tables.plain(Sample(f"{number}", key_of(number), "train", "segmentation", [Turn(QUESTION, ANSWER)], [left]))


def open_corpus(folder: Path, scale: Scale) -> Corpus:
    named = {name: Artifact.sealed(Folder(str(folder / name)), name) for name in ("images", "samples")}
    features = {name: Artifact.sealed(Folder(str(folder / "features" / name)), name) for name in READS}
    return Corpus(**named, features=features, vocabulary=VOCABULARY, config=scale.student)


def begun(scale: Scale, corpus: Corpus) -> Run:
    """A student at its first step."""
    student = initial_student(scale.student, VOCABULARY, 0).to(scale.device)
    distillation = Distillation(scale.student, scale.loss, corpus.columns).to(scale.device)
    parts = {"student": scale.student, "loss": scale.loss, "optim": OptimConfig(), "train": scale.train}
    setup = TrainSetup(**parts, vocabulary=VOCABULARY, corpus=corpus, identity={}, device=scale.device)
    optimizer = optim.optimizer([*student.parameters(), *distillation.parameters()], setup.optim)
    return Run(setup, student, distillation, optimizer, [])


def coming(corpus: Corpus, batch: int) -> Generator[tuple[list[Visit], Batch]]:
    """Visits and their batch, one step after the other, made ahead."""
    order = Order(0, len(corpus))

    def make(step: int) -> tuple[list[Visit], Batch]:
        visits = order.between(step * batch, (step + 1) * batch)
        return visits, collate(corpus.examples(visits))

    return ahead(make, count(), depth=AHEAD, threads=READERS)


def measure(folder: Path, *, pictures: int, batch: int, rounds: int) -> Result:
    scale = full(batch) if torch.cuda.is_available() else micro(batch)
    torch.set_num_threads(1)
    maps, teacher_weights = live_teachers(scale)
    write_store(folder, scale, maps, pictures)
    corpus = open_corpus(folder, scale)
    run = begun(scale, corpus)
    with ExitStack() as stack:
        batches = {name: stack.enter_context(closing(coming(corpus, batch))) for name in ("stored", "live")}
        _, in_hand = next(batches["stored"])

        def live() -> None:
            visits, read = next(batches["live"])
            features = tuple(on_student_grid(scale, maps, corpus.picture(visit.sample)) for visit in visits)
            run.step(1, [(0, replace(read, features=features))])

        ways = {
            "live teachers": live,
            "stored features": lambda: run.step(1, [(0, next(batches["stored"])[1])]),
            "a batch in hand": lambda: run.step(1, [(0, in_hand)]),
        }
        interleaved(ways, 2)  # kernels are chosen and memory is taken in the first steps
        times = interleaved(ways, rounds)
    rows = [
        {"way": way, "s/step": statistics.median(s), "of live": speed(times, way, "live teachers")} for way, s in times.items()
    ]
    return Result(
        [
            Bar(
                "step with live teachers / with stored features", speed(times, "stored features", "live teachers"), at_least=1.5
            ),
            Bar(
                "step with stored features / with a batch in hand",
                1 / speed(times, "stored features", "a batch in hand"),
                at_most=1.1,
            ),
        ],
        rows,
        {
            "device": torch.cuda.get_device_name() if scale.device == "cuda" else "cpu, micro networks",
            "weights of the student": _weights(run.student),
            "weights of the teachers": teacher_weights,
        },
    )


if __name__ == "__main__":
    main("step", measure, pictures=(64, "pictures"), batch=(16, "pictures a step"), rounds=(15, "steps by each contender"))
