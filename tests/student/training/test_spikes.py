"""A step out of the band of those before it is told with its samples, alike in a run that was resumed."""

import random

from student.training.spikes import LEAST, bound, is_spike


def rows(losses: list[float]) -> list[dict[str, float]]:
    return [{"total": loss, "grad_norm": 1.0 + loss / 10} for loss in losses]


def test_noise_is_none_and_a_jump_is_one():
    draw = random.Random(0)
    history = rows([draw.gauss(2.0, 0.1) for _ in range(400)])
    assert not any(is_spike(history[:i], row) for i, row in enumerate(history))
    assert is_spike(history, {"total": 3.5, "grad_norm": 1.2})
    assert is_spike(history, {"total": 2.0, "grad_norm": 3.0})


def test_nothing_is_out_of_a_band_that_is_not_known_yet():
    assert not is_spike(rows([1.0] * (LEAST - 1)), {"total": 9.0, "grad_norm": 9.0})


def test_a_flat_loss_that_stirs_is_none():
    assert not is_spike(rows([1.0] * 50), {"total": 1.2, "grad_norm": 1.2})


def test_the_bound_is_not_moved_by_the_spikes_themselves():
    assert bound([1.0, 1.1, 0.9, 1.0, 1.1, 0.9, 50.0]) < 3
