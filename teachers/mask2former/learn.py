"""Mask2Former learns: the network of `network.py`, taught from nothing by pictures whose regions are known.

The regions of a picture are a set, and so are the queries. Each region goes to one query, so that all of them together cost
the least; every other query shall say "nothing". Then the loss of the authors (arXiv 2112.01527, Sec. 3.3): cross entropy
of the labels, and of the masks binary cross entropy and Dice, at points most of which lie where the network is least sure. It
is taken anew after every layer of the query decoder, and of the queries before the first.

    N pictures   Q queries   L labels, the last of them "nothing"   T regions of a picture   P points, (x, y) within 0..1
    H, W a picture   h, w stride 4 of the network's input
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.errors import NonFinite
from teachers import weights
from teachers.mask2former.assignment import assignment
from teachers.mask2former.config import Learning, Mask2FormerConfig
from teachers.mask2former.network import PanopticNetwork, architecture, preprocess

# Of the seeded weights: with those of the library, meant for wide networks, a micro one learns at half the pace.
GAIN = 1.0
NOTHING_WEIGHT = 0.1
WEIGHTS = {"class": 2.0, "mask": 5.0, "dice": 5.0}
# Of the points at which a mask is judged, this part is chosen from so many times as many: the least sure ones.
UNSURE, CANDIDATES = 0.75, 3
Layer = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Lesson:
    """A picture as the network takes it, and its regions: masks of any one size, and their labels."""

    pixels_3HW: Tensor
    masks_THW: Tensor
    labels_T: Tensor


def untaught(config: Mask2FormerConfig, names: Mapping[int, str]) -> PanopticNetwork:
    """The network before its first step, its weights drawn from the seed; `names` are those of
    its labels, as far as they have any. The caller's random state is left as it was."""
    assert config.sizes is not None, "a network that is taught has sizes"
    plan = architecture(config, config.sizes)
    plan.id2label = plan.id2label | names
    plan.label2id = {name: label for label, name in plan.id2label.items()}
    return weights.seeded(lambda: PanopticNetwork(plan), config.seed, GAIN)


def lesson(image: np.ndarray, masks_THW: np.ndarray, labels: Sequence[int], config: Mask2FormerConfig) -> Lesson:
    """What the network is shown of a picture, and shall find there."""
    return Lesson(preprocess(image, config)[0], torch.from_numpy(masks_THW).float(), torch.tensor(labels))


def files(network: PanopticNetwork) -> dict[str, bytes]:
    """name -> bytes of the folder that holds the network, as the hub has it; the same bytes for the same weights."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    config = json.dumps(network.config.to_dict(), indent=2, sort_keys=True)
    return {"config.json": config.encode(), "model.safetensors": save(tensors, metadata={"format": "pt"})}


def set_threads(threads: int) -> None:
    """For this whole process: sums split over another number of threads differ in their last bits."""
    torch.set_num_threads(threads)


def learn(
    network: PanopticNetwork,
    plan: Learning,
    lessons: Callable[[int], Sequence[Lesson]],
    *,
    seed: int,
    device: str = "cpu",
    report: Callable[[int, dict[str, float]], None],
) -> list[dict[str, float]]:
    """Teach `network` in place; returns the losses of each step.

    `lessons` gives the pictures of a step. Raises `NonFinite` before a step would move the weights by what is not a number.
    On the CPU the weights follow from what is given here, and the number of torch's threads, alone.
    """
    network.train().requires_grad_(True).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    random, history = torch.Generator().manual_seed(seed), list[dict[str, float]]()
    with _repeatable(device):
        for step in range(plan.steps):
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * _pace(step, plan)
            history.append(_step(network, optimizer, lessons(step), plan, random))
            report(step + 1, history[-1])
    return history


def _pace(step: int, plan: Learning) -> float:
    """The part of the learning rate: rising to all of it over the warm-up, then falling to nothing along half a cosine."""
    if step < plan.warmup:
        return (step + 1) / (plan.warmup + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - plan.warmup) / max(plan.steps - plan.warmup, 1))


def _step(
    network: PanopticNetwork,
    optimizer: torch.optim.Optimizer,
    lessons: Sequence[Lesson],
    plan: Learning,
    random: torch.Generator,
) -> dict[str, float]:
    """Move the weights once; pictures of one prepared size go through the network together."""
    optimizer.zero_grad()
    total = dict.fromkeys(WEIGHTS, 0.0)
    for group in _of_one_size(lessons):
        device = next(network.parameters()).device
        layers = predictions(network, torch.stack([lesson.pixels_3HW for lesson in group]).to(device))
        losses = {name: loss * len(group) / len(lessons) for name, loss in loss_of(layers, group, plan.points, random).items()}
        _demand_finite(losses)
        sum(losses.values(), torch.zeros((), device=device)).backward()
        total = {name: total[name] + float(loss.detach()) for name, loss in losses.items()}
    norm = nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
    _demand_finite({"gradient": norm})
    optimizer.step()
    return total


def _of_one_size(lessons: Sequence[Lesson]) -> list[list[Lesson]]:
    groups: dict[torch.Size, list[Lesson]] = {}
    for lesson in lessons:
        groups.setdefault(lesson.pixels_3HW.shape, []).append(lesson)
    return list(groups.values())


def _demand_finite(values: dict[str, Tensor]) -> None:
    wrong = [name for name, value in values.items() if not bool(torch.isfinite(value.detach()).all())]
    if wrong:
        remedy = "Lower its learning_rate, or raise its warmup."
        raise NonFinite(f"the teacher learns no more: {', '.join(wrong)} is not finite", "teach", remedy)


def predictions(network: PanopticNetwork, pixels_N3HW: Tensor) -> list[Layer]:
    """Class logits (N, Q, L) and mask logits (N, Q, h, w): of the bare queries, then after each layer."""
    answer = network.model(pixels_N3HW, output_hidden_states=True)
    states_QNC, masks_NQhw = answer.transformer_decoder_intermediate_states, answer.masks_queries_logits
    pairs = zip(states_QNC, masks_NQhw, strict=True)
    return [(network.class_predictor(states.transpose(0, 1)), masks) for states, masks in pairs]


def loss_of(layers: Sequence[Layer], lessons: Sequence[Lesson], points: int, random: torch.Generator) -> dict[str, Tensor]:
    """Each loss, weighted, summed over the layers; of masks, the mean over all regions of the pictures."""
    regions = max(1, sum(len(lesson.labels_T) for lesson in lessons))
    total = {name: layers[0][0].new_zeros(()) for name in WEIGHTS}
    for classes_NQL, masks_NQhw in layers:
        wanted_NQ = torch.full(classes_NQL.shape[:2], classes_NQL.shape[-1] - 1, device=classes_NQL.device)
        for number, lesson in enumerate(lessons):
            regions_T, queries_T = match(classes_NQL[number], masks_NQhw[number], lesson, points, random)
            wanted_NQ[number, queries_T] = lesson.labels_T[regions_T].to(wanted_NQ.device)
            mask, dice = mask_losses(masks_NQhw[number, queries_T], lesson.masks_THW[regions_T], points, random)
            total["mask"] = total["mask"] + mask / regions
            total["dice"] = total["dice"] + dice / regions
        weight_L = torch.ones(classes_NQL.shape[-1], device=classes_NQL.device)
        weight_L[-1] = NOTHING_WEIGHT
        total["class"] = total["class"] + F.cross_entropy(classes_NQL.flatten(0, 1), wanted_NQ.flatten(), weight_L)
    return {name: WEIGHTS[name] * loss for name, loss in total.items()}


@torch.no_grad()
def match(classes_QL: Tensor, masks_Qhw: Tensor, lesson: Lesson, points: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """(regions, queries), a pair each: all regions of the picture, or as many of them as there are queries."""
    places_P2 = torch.rand(points, 2, generator=random).to(masks_Qhw.device)
    found_QP = sampled(masks_Qhw, places_P2.expand(len(masks_Qhw), -1, -1))
    wanted_TP = sampled(lesson.masks_THW.to(masks_Qhw), places_P2.expand(len(lesson.masks_THW), -1, -1))
    likely_QT = classes_QL.softmax(-1)[:, lesson.labels_T.to(classes_QL.device)]
    inside_QT, outside_QT = -F.logsigmoid(found_QP) @ wanted_TP.T, -F.logsigmoid(-found_QP) @ (1 - wanted_TP).T
    shared_QT = found_QP.sigmoid() @ wanted_TP.T
    dice_QT = 1 - (2 * shared_QT + 1) / (found_QP.sigmoid().sum(1)[:, None] + wanted_TP.sum(1) + 1)
    cost_QT = WEIGHTS["mask"] * (inside_QT + outside_QT) / points + WEIGHTS["dice"] * dice_QT - WEIGHTS["class"] * likely_QT
    _demand_finite({"cost": cost_QT})
    regions, queries = assignment(cost_QT.T.double().cpu().numpy())
    return torch.from_numpy(regions), torch.from_numpy(queries)


def mask_losses(logits_Thw: Tensor, masks_THW: Tensor, points: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Binary cross entropy and Dice of each region, summed over the regions."""
    with torch.no_grad():
        places_TP2 = unsure(logits_Thw, points, random)
        wanted_TP = sampled(masks_THW.to(logits_Thw), places_TP2)
    found_TP = sampled(logits_Thw, places_TP2)
    entropy_T = F.binary_cross_entropy_with_logits(found_TP, wanted_TP, reduction="none").mean(1)
    likely_TP = found_TP.sigmoid()
    dice_T = 1 - (2 * (likely_TP * wanted_TP).sum(1) + 1) / (likely_TP.sum(1) + wanted_TP.sum(1) + 1)
    return entropy_T.sum(), dice_T.sum()


def unsure(logits_Thw: Tensor, points: int, random: torch.Generator) -> Tensor:
    """(T, P, 2): mostly where the logits are next to zero, the rest anywhere."""
    count, device = len(logits_Thw), logits_Thw.device
    places_TN2 = torch.rand(count, CANDIDATES * points, 2, generator=random).to(device)
    kept = int(UNSURE * points)
    best_TK = (-sampled(logits_Thw, places_TN2).abs()).topk(kept, dim=1).indices
    chosen_TK2 = places_TN2.gather(1, best_TK[..., None].expand(-1, -1, 2))
    return torch.cat([chosen_TK2, torch.rand(count, points - kept, 2, generator=random).to(device)], dim=1)


def sampled(maps_Thw: Tensor, places_TP2: Tensor) -> Tensor:
    """(T, P): each map at its places, bilinear."""
    return F.grid_sample(maps_Thw[:, None], 2 * places_TP2[:, None] - 1, align_corners=False)[:, 0, 0]


@contextmanager
def _repeatable(device: str) -> Iterator[None]:
    """On CPUs, nothing but operations that repeat bit for bit."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(device == "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
