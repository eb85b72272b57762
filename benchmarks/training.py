"""A student at its training step, in two forms: ours, whose batch is one packed row, and the plain one that is held against it:
samples side by side, each padded to the longest with tokens of its own, under one dense mask.

Everything else is the same code: embeddings, layers, mask head, losses and optimizer; attention in each form by what is fastest
for it. Shapes: B samples, L tokens of the longest, R = B·L, Q query heads, K key/value heads, D head_dim.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from student.config import LossConfig, OptimConfig, StudentConfig
from student.data.ahead import ahead
from student.data.corpus import Corpus
from student.data.features import Column
from student.data.mixture import Order
from student.losses import Distillation, losses
from student.model import Decoder, PixelSail
from student.sequence import IGNORED, NOT_A_PATCH, Batch, Example, collate
from student.sight import KeyValues, attend
from student.training import optim
from student.vocabulary import Vocabulary

# That of the quickstart.
STUDENT = StudentConfig(
    layers=5,
    hidden=128,
    heads=4,
    kv_heads=4,
    head_dim=32,
    ffn=384,
    rope_theta=100,
    max_side=128,
    mask_dim=64,
    mask_width=64,
    max_length=512,
)
RATE = 1e-5  # small: every contender takes many steps on few batches
WARM = 3  # steps after which training is under way


class Dense:
    """Who sees whom as one mask (B, 1, L, L), which every layer of a step is given."""

    def __init__(self, batch: Batch):
        self.samples, device = len(batch.spans), batch.tokens_R.device
        place_L = torch.arange(batch.spans[0].length, device=device)
        block_B11 = torch.tensor([span.block for span in batch.spans], device=device)[:, None, None]
        in_block_BLL = (place_L[:, None] < block_B11) & (place_L < block_B11)
        self.seen_B1LL = ((place_L <= place_L[:, None]) | in_block_BLL)[:, None]

    def __call__(self, layer: int, query_QRD: Tensor, key_KRD: Tensor, value_KRD: Tensor) -> Tensor:
        apart = [part.unflatten(1, (self.samples, -1)).transpose(0, 1) for part in (query_QRD, key_KRD, value_KRD)]
        return fastest(query_QRD)(*apart, self.seen_B1LL).transpose(0, 1).flatten(1, 2)


def fastest(query_QRD: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """What of those below is the fastest for one large mask, where the query is."""
    if query_QRD.is_cuda:
        return repeated
    return spelt_out if query_QRD.dtype == torch.bfloat16 else attend


def repeated(query_BQLD: Tensor, key_BKLD: Tensor, value_BKLD: Tensor, seen_B1LL: Tensor) -> Tensor:
    """As Hugging Face has it: a GPU's fused kernels that take a mask want keys and values of each query head, and would
    otherwise leave the work to a slow one."""
    return attend(query_BQLD, *_of_each_query(query_BQLD, key_BKLD, value_BKLD), seen_B1LL)


def spelt_out(query_BQLD: Tensor, key_BKLD: Tensor, value_BKLD: Tensor, seen_B1LL: Tensor) -> Tensor:
    """On a CPU in bf16."""
    key, value = _of_each_query(query_BQLD, key_BKLD, value_BKLD)
    scores = (query_BQLD * query_BQLD.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    hidden = torch.zeros_like(seen_B1LL, dtype=scores.dtype).masked_fill(~seen_B1LL, -torch.inf)
    return (scores + hidden).softmax(dim=-1) @ value


def _of_each_query(query_BQLD: Tensor, *parts_BKLD: Tensor) -> list[Tensor]:
    """(B, Q, L, D): what Q/K query heads share, once for each of them."""
    shared = query_BQLD.shape[1] // parts_BKLD[0].shape[1]
    return [part.repeat_interleave(shared, dim=1) if shared > 1 else part for part in parts_BKLD]


class DenseDecoder(Decoder):
    """The decoder with that mask, for batches of samples of one length."""

    def states(self, batch: Batch, ids_K: Tensor, past: KeyValues | None) -> Tensor:
        self._dense = Dense(batch)
        return super().states(batch, ids_K, past)

    def _decoded(self, x_RH: Tensor, positions_3R: Tensor, sights: object) -> Tensor:
        return super()._decoded(x_RH, positions_3R, self._dense)


class DenseStudent(PixelSail):
    """The student with that decoder."""

    def __init__(self, config: StudentConfig, vocabulary: Vocabulary, generator: torch.Generator):
        super().__init__(config, vocabulary, None)
        self.single_transformer.model = DenseDecoder(config, len(vocabulary))
        self._initialise(generator)


def padded(examples: Sequence[Example], token: int) -> list[Example]:
    """The examples, all as long as the longest; what is added is text that nobody is asked for."""
    longest = max(len(example.tokens_L) for example in examples)
    fills = {"tokens_L": token, "labels_L": IGNORED, "patch_index_L": NOT_A_PATCH, "prompt_index_L": NOT_A_PATCH}
    made = []
    for example in examples:
        more = longest - len(example.tokens_L)
        arrays = {name: np.pad(getattr(example, name), (0, more), constant_values=fill) for name, fill in fills.items()}
        made.append(replace(example, **arrays, positions_3L=np.pad(example.positions_3L, ((0, 0), (0, more)))))
    return made


@dataclass
class Learner:
    """A student with what moves it."""

    student: PixelSail
    distillation: Distillation
    optimizer: torch.optim.Optimizer
    loss: LossConfig
    device: str
    precision: torch.dtype
    rate: float = RATE

    @classmethod
    def of(
        cls,
        kind: type[PixelSail],
        config: StudentConfig,
        vocabulary: Vocabulary,
        *,
        loss: LossConfig,
        columns: Mapping[str, Column],
        device: str = "cpu",
        precision: torch.dtype = torch.float32,
    ) -> "Learner":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            distillation = Distillation(config, loss, columns).to(device)
        student = kind(config, vocabulary, torch.Generator().manual_seed(0)).to(device)
        optimizer = optim.optimizer([*student.parameters(), *distillation.parameters()], OptimConfig())
        return cls(student, distillation, optimizer, loss, device, precision)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        random = torch.Generator(self.device).manual_seed(0)
        on_device = batch.to(self.device)
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            output = self.student(on_device, every_picture=self.distillation.reads_mask_features)
            return losses(output, on_device, self.distillation, self.loss, random)

    def learn(self, *batches: Batch) -> None:
        """One step by micro-batches of one weight."""
        for batch in batches:
            parts = self.losses(batch)
            optim.check_finite(parts, batch.sample_ids)
            (parts["total"] / len(batches)).backward()
        optim.step(self.optimizer, self.rate, 1.0, batches[0].sample_ids)
        if self.device == "cuda":
            torch.cuda.synchronize()


def waited(learner: Learner, corpus: Corpus, steps: int, *, batch: int, readers: int) -> float:
    """The share of its time for which training waits for batches that `readers` threads make ahead, once it is under way."""
    order = Order(0, len(corpus))
    make = lambda step: collate(corpus.examples(order.between(step * batch, (step + 1) * batch)))  # noqa: E731
    with closing(ahead(make, range(WARM + steps), depth=2, threads=readers)) as batches:
        for _ in range(WARM):
            learner.learn(next(batches))
        start, waiting = time.perf_counter(), 0.0
        for _ in range(steps):
            asked = time.perf_counter()
            made = next(batches)
            waiting += time.perf_counter() - asked
            learner.learn(made)
        return waiting / (time.perf_counter() - start)


def best_flops(device: str, dtype: torch.dtype, side: int, tries: int) -> float:
    """Operations a second of the best of several products of two matrices of side x side."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(tries):
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)
