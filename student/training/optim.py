"""How the weights move: AdamW on everything, warm-up then cosine, and no step on numbers that are not finite."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from schemas.errors import NonFinite
from student.config import OptimConfig


def optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with the same decay on every parameter, norms and biases too, as in the reference."""
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def learning_rate(step: int, total: int, config: OptimConfig) -> float:
    """The rate of step 0 … total − 1: from `start_factor` of the peak up to it in a line, then down a cosine to zero."""
    warm = round(config.warmup * total)
    if step < warm:
        return config.learning_rate * (config.start_factor + (1 - config.start_factor) * step / warm)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


def check_finite(parts: Mapping[str, Tensor], sample_ids: Sequence[str]) -> None:
    """Raises NonFinite naming the losses that are not numbers and the samples they came from; call it before backward."""
    values = {name: part.item() for name, part in parts.items()}
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise NonFinite(f"loss {', '.join(bad)}", _where(sample_ids), "The weights are as they were before this step.")


def step(moved: torch.optim.Optimizer, rate: float, clip: float, sample_ids: Sequence[str]) -> float:
    """Moves the weights once at `rate`, gradients clipped to the norm `clip` and then cleared; the norm before clipping.

    Raises NonFinite before any weight moves where that norm is not a number.
    """
    parameters = [parameter for group in moved.param_groups for parameter in group["params"]]
    found = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    whole = found.full_tensor() if isinstance(found, DTensor) else found
    norm = whole.item()
    if not math.isfinite(norm):
        raise NonFinite(f"gradient norm {norm}", _where(sample_ids), "The weights are as they were before this step.")
    nn.utils.clip_grads_with_norm_(parameters, clip, whole)
    for group in moved.param_groups:
        group["lr"] = rate
    moved.step()
    moved.zero_grad(set_to_none=True)
    return norm


def _where(sample_ids: Sequence[str]) -> str:
    return f"samples {', '.join(sample_ids)}"
