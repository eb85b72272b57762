"""How far a codec leads a student astray: stored maps against those of a teacher that stands in the training loop.

Both go through the real thing: a student as it begins, the linear into the teacher's space and the squared distance of the
reference. A gradient is that of all their weights. It is compared twice. At the start the student is far from the teacher,
and most of the way to it is the same for any codec. Later, when the loss has fallen to `LATE` of its start (its residuals,
then, to the root of that), what the codec adds weighs the more; that is reckoned by bringing the student's output so far
towards the live map, without a training run.

Shapes: C teacher channels, K the student's, y x x the teacher's own grid, h x w the student's, n cells or places of it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from student.data.features import Column, Stored, Target, resized
from student.model import PixelSail
from student.sequence import collate, encode
from student.vocabulary import Vocabulary

LATE = 0.1
QUESTION, ANSWER = "What is in the picture?", "A picture."


@dataclass(frozen=True)
class Reading:
    """One codec on one picture. `relative_error`: length of the error over length of the map; `cosine`: mean over the cells;
    `loss_change`: of the live loss, signed; gradients as the module says."""

    relative_error: float
    cosine: float
    loss_change: float
    gradient_cosine: float
    late_gradient_cosine: float


def mean(readings: list[Reading]) -> Reading:
    """Of each number, over the pictures."""
    rows = [asdict(reading) for reading in readings]
    return Reading(**{name: float(np.mean([row[name] for row in rows])) for name in rows[0]})


class Judge:
    """A student as it begins, and the linear into a teacher's space, which is drawn from the seed."""

    def __init__(self, *, student: PixelSail, vocabulary: Vocabulary, reads: str, channels: int, seed: int, device: str):
        self._config, self._vocabulary, self._reads, self._device = student.config, vocabulary, reads, device
        self._student = student.to(device)
        width = self._config.hidden if reads == "patches" else self._config.mask_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._into = nn.Linear(width, channels).to(device)
        self._weights = [*self._student.parameters(), *self._into.parameters()]

    def compare(
        self, image_HWC: np.ndarray, live_Cyx: np.ndarray, stored: Mapping[str, tuple[Column, Stored]]
    ) -> dict[str, Reading]:
        """name -> what becomes of this picture in each form in which it is stored. live: on the teacher's own grid."""
        student_1hwK = self._look_at(image_HWC)
        grid = (student_1hwK.shape[1], student_1hwK.shape[2])
        live_1Chw = resized(torch.from_numpy(live_Cyx)[None].to(self._device), grid)
        live_nC = live_1Chw.to(torch.bfloat16).float().flatten(2)[0].T  # the precision in which the reference compares
        made_nC = self._into(student_1hwK.flatten(1, 2)[0].float())
        away_nC = (live_nC - made_nC).detach()
        late_nC = made_nC + away_nC * (1 - LATE**0.5)
        with_live = [self._gradient(F.mse_loss(made, live_nC)) for made in (made_nC, late_nC)]
        live_loss = F.mse_loss(made_nC, live_nC).item()

        def reading(column: Column, each: Stored) -> Reading:
            target = Target(column).to(self._device)
            target_nC = target([each.to(self._device)], grid)[0]
            at = lambda cells_nC: target.places(cells_nC.unflatten(0, grid)[None], [each.to(self._device)])[0]  # noqa: E731
            losses = [F.mse_loss(at(made), target_nC) for made in (made_nC, late_nC)]
            true_nC = at(live_nC)
            start, late = (_cosine(self._gradient(loss), true) for loss, true in zip(losses, with_live, strict=True))
            return Reading(
                relative_error=((target_nC - true_nC).norm() / true_nC.norm()).item(),
                cosine=F.cosine_similarity(target_nC, true_nC, dim=1).mean().item(),
                loss_change=losses[0].item() / live_loss - 1,
                gradient_cosine=start,
                late_gradient_cosine=late,
            )

        return {name: reading(*form) for name, form in stored.items()}

    def _look_at(self, image_HWC: np.ndarray) -> Tensor:
        """(1, h, w, K): the tensor that the teacher is held against."""
        example = encode(self._vocabulary, self._config, turns=[(QUESTION, ANSWER)], image=image_HWC)
        output = self._student(collate([example]).to(self._device), every_picture=True)
        if self._reads == "patches":
            return output.patches[0][None]
        return output.mask_features[0].permute(1, 2, 0)[None]

    def _gradient(self, loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss, self._weights, retain_graph=True, allow_unused=True)
        return torch.cat([part.flatten() for part in found if part is not None])


def _cosine(one: Tensor, other: Tensor) -> float:
    """In float64: what is compared may differ in the seventh digit."""
    one, other = one.double(), other.double()
    return float(one @ other / (one.norm() * other.norm()))
