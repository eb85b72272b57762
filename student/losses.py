"""What the student is trained on: text, masks at sampled points, and the teachers' features. All in fp32.

Sums and the 1e-4 terms are the reference's: they matter at a tolerance of 1e-5. Where its per-micro-batch rules assume one
sample, the rule here is per sample: a sample with masks has its text loss scaled, its neighbours have not. And a micro-batch
weighs as much as it holds. With `compat = "paper"` both rules are the release's.

Shapes: S supervised tokens, n masks or cells of a grid, P points, G samples of one size, K channels of the student, C of the
teacher, h×w the student's grid.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from schemas.errors import ConfigError, DataError
from student.config import LossConfig, StudentConfig
from student.data.features import Column, Stored, Target
from student.model import Output
from student.sequence import IGNORED, Batch

EPSILON = 1e-4
ItemT = TypeVar("ItemT")


class Distillation(nn.Module):
    """One linear a teacher, from the student's tensor into the teacher's space; trained and resumed, never released."""

    def __init__(self, student: StudentConfig, config: LossConfig, columns: Mapping[str, Column]):
        """columns: what is stored of each teacher."""
        super().__init__()
        self.teachers = config.distillation
        unknown = sorted(self.teachers.keys() ^ columns.keys())
        if unknown:
            raise ConfigError(
                "a teacher needs both a loss and a feature table", ", ".join(unknown), "Name it in both, or in neither."
            )
        for name, column in columns.items():
            if fault := student.fault_of(column.spec.grid):
                raise ConfigError(fault, f"features.{name}")
        self.targets = nn.ModuleDict({name: Target(columns[name], loss.space) for name, loss in self.teachers.items()})
        widths = {"patches": student.hidden, "mask_features": student.mask_dim}
        linears = {name: nn.Linear(widths[loss.reads], self.targets[name].channels) for name, loss in self.teachers.items()}
        self.into = nn.ModuleDict(linears)

    @property
    def reads_mask_features(self) -> bool:
        """Whether some teacher is matched on mask features, so that every picture needs them."""
        return any(loss.reads == "mask_features" for loss in self.teachers.values())

    def forward(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Teacher -> weighted loss: the mean over the batch's images of their mean squared distance."""
        return {name: self.teachers[name].weight * self._distance(name, output, batch) for name in self.teachers}

    def _distance(self, name: str, output: Output, batch: Batch) -> Tensor:
        into = self.into[name]
        shown = [i for i, features in enumerate(batch.features) if name in features]
        if not shown:
            # From the states too: under fsdp the way back must pass by here on every worker.
            return sum(tensor.float().sum() for tensor in (output.hidden_RH, *into.parameters())) * 0.0
        student = [_student_map(self.teachers[name].reads, output, batch, i) for i in shown]
        teacher = [batch.features[i][name] for i in shown]
        groups = _grouped(zip(student, teacher, strict=True), lambda pair: (pair[0].shape, pair[1].form))
        total = sum(self._squared(name, *zip(*group, strict=True)) for group in groups)
        return total / (len(shown) + EPSILON)

    def _squared(self, name: str, student: Sequence[Tensor], teacher: Sequence[Stored]) -> Tensor:
        """Sum over pictures of one size of their mean squared distance."""
        target, student_GhwK = self.targets[name], torch.stack(list(student))
        student_GnK = target.places(student_GhwK, teacher)
        made_GnC = self.into[name](student_GnK.float()).float()
        return target.share * F.mse_loss(made_GnC, target(teacher, student_GhwK.shape[1:3])) * len(student)


def _student_map(reads: str, output: Output, batch: Batch, i: int) -> Tensor:
    """(h, w, channels) of sample i."""
    found = output.patches[i] if reads == "patches" else output.mask_features[i]
    if found is None:
        raise DataError(f"teacher features but no {reads}", f"sample {batch.sample_ids[i]}", "Is its picture missing?")
    return found if reads == "patches" else found.permute(1, 2, 0)


def losses(
    output: Output, batch: Batch, distillation: Distillation, config: LossConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    """`lm`, `mask`, `dice`, `distill/<teacher>` with their weights in them, and their sum `total`."""
    with torch.autocast(output.hidden_RH.device.type, enabled=False):  # whatever the student was carried out in
        parts = {"lm": lm_loss(output, batch, config)}
        parts["mask"], parts["dice"] = mask_losses(output, batch, config, generator)
        parts |= {f"distill/{name}": loss for name, loss in distillation(output, batch).items()}
        return parts | {"total": sum(parts.values()) + output.anchor.float()}


def share(size: Tensor, whole: Tensor, pieces: int, config: LossConfig) -> Tensor:
    """Of each loss, how much of the batch's a micro-batch brings: what it holds of the things that the loss is a mean of.

    size, whole: how many of them the micro-batch and the batch hold. In the release each of the `pieces` micro-batches brings
    as much as any other, so that a token of a short answer weighs more than one of a long answer.
    """
    return torch.full_like(size, 1 / pieces) if config.compat == "paper" else size / whole


def lm_loss(output: Output, batch: Batch, config: LossConfig) -> Tensor:
    """Mean over the batch's supervised tokens of the cross-entropy times their sample's weight."""
    next_labels_R = batch.next_labels_R
    supervised_R = next_labels_R != IGNORED
    has_masks = [count > 0 for count in batch.taught_masks]
    if config.compat == "paper":
        has_masks = [any(has_masks)] * len(has_masks)
    weights = [config.lm_with_masks if masked else config.lm for masked in has_masks]
    weight_R = torch.cat([torch.full((span.length,), each) for span, each in zip(batch.spans, weights, strict=True)])
    loss_S = F.cross_entropy(output.logits_SV.float(), next_labels_R[supervised_R], reduction="none")
    return (loss_S * weight_R.to(loss_S.device)[supervised_R]).sum() / max(len(loss_S), 1)


def mask_losses(output: Output, batch: Batch, config: LossConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(mask, dice) summed over the batch's masks and divided by their number, at points chosen anew each call. Masks that are
    unpaired count for nothing."""
    asked = [each for each in zip(output.mask_logits, batch.masks, batch.unpaired, strict=True) if len(each[1])]
    pairs = [(logits, masks) for logits, masks, unpaired in asked if not unpaired]
    groups = _grouped(pairs, lambda pair: (pair[0].shape[1:], pair[1].shape[1:]))
    mask = dice = output.hidden_RH.new_zeros((), dtype=torch.float32)
    for logits_nhw in (logits for logits, _, unpaired in asked if unpaired):
        mask = mask + 0.0 * logits_nhw.float().sum()  # the head has a gradient whatever there is to learn
    for group in groups:
        logits_nhw, masks_nHW = (torch.cat(part) for part in zip(*group, strict=True))
        rounding = logits_nhw.dtype if config.compat == "paper" else torch.float32
        logits_nhw, masks_nHW = logits_nhw.float(), masks_nHW.float()
        points_nP2 = choose_points(logits_nhw, config, generator)
        at_points = point_losses(*(sample(maps, points_nP2).to(rounding).float() for maps in (logits_nhw, masks_nHW)))
        mask, dice = mask + at_points[0], dice + at_points[1]
    count = sum(batch.taught_masks) + EPSILON
    return config.mask * mask / count, config.dice * dice / count


@torch.no_grad()
def choose_points(logits_nhw: Tensor, config: LossConfig, generator: torch.Generator) -> Tensor:
    """(n, P, 2) points, XY in [0, 1]: mostly the least certain of many random ones, the rest random."""
    n, device = len(logits_nhw), logits_nhw.device
    uncertain = int(config.importance * config.points)
    drawn = torch.rand(n, int(config.oversample * config.points), 2, generator=generator, device=device)
    nearest_zero = sample(logits_nhw, drawn).abs().topk(uncertain, dim=1, largest=False, sorted=False).indices
    fresh = torch.rand(n, config.points - uncertain, 2, generator=generator, device=device)
    return torch.cat((drawn.gather(1, nearest_zero[..., None].expand(-1, -1, 2)), fresh), dim=1)


def point_losses(predicted_nP: Tensor, target_nP: Tensor) -> tuple[Tensor, Tensor]:
    """(cross-entropy, dice) of logits and masks read at points, each summed over the masks."""
    crossed = F.binary_cross_entropy_with_logits(predicted_nP, target_nP, reduction="none").sum()
    chance = predicted_nP.sigmoid()
    overlap = 2 * (chance * target_nP).sum(dim=1) + 1
    dice = 1 - overlap / (chance.sum(dim=1) + target_nP.sum(dim=1) + 1)
    return crossed / (predicted_nP.shape[1] + EPSILON), dice.sum() / (1 + EPSILON)


def sample(maps_nHW: Tensor, points_nP2: Tensor) -> Tensor:
    """(n, P): each map read at its points, bilinearly, pixels centred at halves and zero outside."""
    grid = 2 * points_nP2[:, None] - 1
    return F.grid_sample(maps_nHW[:, None], grid, mode="bilinear", align_corners=False)[:, 0, 0]


def _grouped(items: Iterable[ItemT], key) -> list[list[ItemT]]:
    """The items, those with one key together, in order of first appearance."""
    groups: dict[Hashable, list[ItemT]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return list(groups.values())
