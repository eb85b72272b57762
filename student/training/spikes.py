"""Steps whose loss or gradient jumps out of what the steps before it did: told, counted, and not skipped.

The bound follows from the history alone, which a checkpoint keeps, so that a run that was resumed tells of the same steps.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

WATCHED = ("total", "grad_norm")
WINDOW, LEAST = 100, 20  # steps that the bound is taken from, and how many there must be
DEVIATIONS = 12  # of the median absolute deviation; 8 standard deviations, if the numbers were normal


def is_spike(history: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> bool:
    """Whether a watched number of `row` is beyond the bound of the steps before it."""
    recent = history[-WINDOW:]
    return len(recent) >= LEAST and any(row[name] > bound([step[name] for step in recent]) for name in WATCHED)


def bound(values: Sequence[float]) -> float:
    """The median and so many median absolute deviations above it; half as much again at least, lest a flat loss is a spike."""
    middle = median(values)
    return middle + max(DEVIATIONS * median(abs(value - middle) for value in values), abs(middle) / 2)
