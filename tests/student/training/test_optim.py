import math

import pytest
import torch
from pydantic import ValidationError

from schemas.errors import NonFinite
from student.config import OptimConfig
from student.training.optim import check_finite, learning_rate, optimizer, step


def test_the_rate_climbs_a_line_and_falls_a_cosine():
    config = OptimConfig(learning_rate=2.0, warmup=0.1, start_factor=0.5)
    rates = [learning_rate(i, 200, config) for i in range(200)]
    assert rates[0] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.5)
    assert rates[20] == pytest.approx(2.0)
    assert rates[110] == pytest.approx(1.0)
    assert rates[65] == pytest.approx(1 + math.cos(math.pi / 4))
    assert rates[199] < 0.001
    assert rates == sorted(rates[:20]) + sorted(rates[20:], reverse=True)


@pytest.mark.parametrize("total", [1, 2, 7])
def test_a_short_run_has_a_rate_at_every_step(total):
    rates = [learning_rate(i, total, OptimConfig(warmup=0.5)) for i in range(total)]
    assert all(0 < rate <= 4e-5 for rate in rates)


def moved_weight(gradient: float) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([gradient, 0.0])
    return weight, optimizer([weight], OptimConfig())


def test_a_step_is_adamw_at_the_given_rate_and_clears_the_gradient():
    weight, moved = moved_weight(6.0)
    assert step(moved, 0.1, 1.0, ["a"]) == pytest.approx(6.0)
    assert weight.grad is None
    # Adam's first step is the rate times the sign; decay takes rate · 0.05 of every weight.
    assert weight.tolist() == pytest.approx([3.0 * (1 - 0.005) - 0.1, 4.0 * (1 - 0.005)], rel=1e-5)


def test_gradients_are_clipped_before_the_optimizer_sees_them():
    weight, moved = moved_weight(6.0)
    step(moved, 0.1, 1.5, ["a"])
    assert moved.state[weight]["exp_avg"][0] == pytest.approx(0.1 * 1.5, rel=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_moves_nothing_and_names_the_samples(bad):
    weight, moved = moved_weight(bad)
    with pytest.raises(NonFinite, match=r"samples a, b: gradient norm"):
        step(moved, 0.1, 1.0, ["a", "b"])
    assert weight.tolist() == [3.0, 4.0]
    assert not moved.state[weight]


def test_a_loss_that_is_no_number_is_named_with_its_samples():
    parts = {"lm": torch.tensor(1.0), "mask": torch.tensor(float("nan"))}
    with pytest.raises(NonFinite, match=r"samples a, b: loss mask = nan"):
        check_finite(parts, ["a", "b"])
    check_finite({"lm": torch.tensor(1.0)}, ["a"])


@pytest.mark.parametrize("over", [{"learning_rate": 0}, {"betas": (0.9, 1.0)}, {"warmup": 1.0}, {"clip": 0}])
def test_optimizer_settings_that_mean_nothing_are_refused(over):
    with pytest.raises(ValidationError):
        OptimConfig(**over)
