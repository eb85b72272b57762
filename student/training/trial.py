"""What a micro-batch takes a student that learns. A few are learned from, by the very step of the loop; where that is too much
for this machine, it is reckoned: the operations of a micro-batch at the rate of one large product of matrices.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from student.data.samples import encode_nothing
from student.data.visits import Visit
from student.losses import Distillation
from student.model import PixelSail
from student.sequence import IGNORED, Batch, collate
from student.training import optim
from student.training.flops import training_flops
from student.training.run import Run, TrainSetup, initial_student, lay_out

T = TypeVar("T")
ROUNDS = 3  # micro-batches of each kind that are timed, after one that warms up
SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed
PRODUCTS = 5
# A micro-batch that would take longer at the rate of the product is not tried: it takes some times as long as that.
PATIENCE_SECONDS = 4.0
# The part of its device's free memory that a student which is tried may be reckoned to need, and of the machine's whole, which
# workers share. It takes more than what is reckoned.
ROOM, SHARED_ROOM = 0.4, 0.2
_HELD = 16  # bytes of a weight in float32, its gradient and its two moments


@dataclass(frozen=True)
class Trial:
    """Of a student of so many `weights`, the linears into teachers' spaces among them. For each kind of micro-batch: seconds of
    a step by one, none where it was not tried; seconds to load one; and seconds that its products of matrices take at the
    rate of a large one. `memory` is reckoned: weights, gradients, moments, and what is kept for the backward pass."""

    weights: int
    learn: list[list[float]]
    load: list[list[float]]
    products: list[float]
    memory: int


def trial(setup: TrainSetup, kinds: Sequence[Sequence[Visit]]) -> Trial:
    """Of micro-batches of these visits, each a kind of its own; torch reckons as in the loop, with the setup's threads."""
    threads, repeats = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(setup.threads)
    torch.use_deterministic_algorithms(setup.device == "cpu")
    try:
        return _trial(setup, kinds)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(repeats)


def _trial(setup: TrainSetup, kinds: Sequence[Sequence[Visit]]) -> Trial:
    loaded = [[_timed(lambda visits=visits: _batch(setup, visits)) for _ in range(ROUNDS)] for visits in kinds]
    batches = [made[-1][1] for made in loaded]
    every = any(teacher.reads == "mask_features" for teacher in setup.loss.distillation.values())
    asked = [training_flops(setup.student, batch, len(setup.vocabulary), every) for batch in batches]
    rate, weights = product_rate(setup.device, setup.train.precision), _weights(setup)
    products, memory = [each / rate for each in asked], weights * _HELD + max(_kept(setup, batch) for batch in batches)
    tried = max(products) <= PATIENCE_SECONDS and memory <= _room(setup.device)
    learn = _learned(setup, batches) if tried else []
    return Trial(weights, learn, [[seconds for seconds, _ in made] for made in loaded], products, memory)


def product_rate(device: str, precision: str) -> float:
    """Operations a second of the best of a few products of two large matrices. precision: "float32" or "bfloat16"."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side = SIDE["cuda" if device.startswith("cuda") else "cpu"]
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(_timed(lambda: (left @ right)[0, 0].item())[0] for _ in range(PRODUCTS))


def _batch(setup: TrainSetup, visits: Sequence[Visit]) -> Batch:
    return collate(setup.corpus.examples(visits) or [encode_nothing(setup.vocabulary, setup.student)])


def _weights(setup: TrainSetup) -> int:
    """Counted on a student that has no numbers, so that one which does not fit can be counted too."""
    with torch.device("meta"):
        student = PixelSail(setup.student, setup.vocabulary, None)
    parts = (student, Distillation(setup.student, setup.loss, setup.corpus.columns))
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def _kept(setup: TrainSetup, batch: Batch) -> int:
    """Bytes kept for the backward pass by the layers, where all is not recomputed, and by the language head."""
    config, size = setup.student, 2 if setup.train.precision == "bfloat16" else 4
    attention = 3 * config.heads * config.head_dim + 2 * config.kv_heads * config.head_dim
    inside = 0 if setup.train.recompute else 4 * config.hidden + attention + 4 * config.ffn
    layers = config.layers * len(batch.tokens_R) * (4 * config.hidden + size * inside)
    supervised = int((batch.next_labels_R != IGNORED).sum())
    return layers + 8 * supervised * len(setup.vocabulary)


def _room(device: str) -> float:
    if device.startswith("cuda"):
        return ROOM * torch.cuda.mem_get_info(torch.device(device))[0]
    return SHARED_ROOM * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _learned(setup: TrainSetup, batches: Sequence[Batch]) -> list[list[float]]:
    """Seconds of steps by one micro-batch, for each kind."""
    run = _begun(setup)
    run.step(0, [(0, batches[0])])
    return [[_timed(lambda batch=batch: run.step(1, [(0, batch)]))[0] for _ in range(ROUNDS)] for batch in batches]


def _begun(setup: TrainSetup) -> Run:
    """As a run begins that lies nowhere."""
    student = initial_student(setup.student, setup.vocabulary, setup.train.seed).to(setup.device)
    distillation = Distillation(setup.student, setup.loss, setup.corpus.columns).to(setup.device)
    lay_out(setup, student, distillation)
    optimizer = optim.optimizer([*student.parameters(), *distillation.parameters()], setup.optim)
    return Run(setup, student, distillation, optimizer, [])


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made
