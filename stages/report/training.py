"""What a training run wrote down, and whether each distillation loss fell: if not under half, why, from the data.

A distillation loss is a mean squared distance, so there is a yardstick in the features themselves: a student that wrote
each channel's mean everywhere, and saw nothing of the picture, would lose exactly the variance around the channel means.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from schemas.artifact import Artifact
from schemas.errors import BrokenArtifact
from stages.report.reading import feature, good_spots, sample

WINDOW = 20  # steps at each end of the run
PICTURES = 128  # enough for a variance


def read_history(train: Artifact) -> dict[str, np.ndarray]:
    """Column -> one value a logged step, `step` ascending; a step that a resumed run logged again counts once, the last."""
    try:
        text = train.folder.read("metrics.jsonl").decode()
        lines = {line["step"]: line for line in map(json.loads, text.splitlines())}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        where = train.folder.path("metrics.jsonl")
        raise BrokenArtifact(f"not one JSON object with a step a line: {error!r}", where, "Train again.") from None
    rows = [lines[step] for step in sorted(lines)]
    names = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, int | float))
    return {name: np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in names}


def distillation(history: Mapping[str, np.ndarray], features: Mapping[str, Artifact], weights: Mapping[str, float]) -> dict:
    """Teacher -> start, end, ratio, whether it fell under half, the yardstick, and the reason where it did not fall."""
    found = {}
    for name in history:
        if name.startswith("distill/"):
            teacher = name.removeprefix("distill/")
            table = features.get(teacher)
            spread = variance(table) if table else None
            floor = None if spread is None else spread * weights.get(teacher, 1.0)
            found[teacher] = _fall(history["step"], history[name], floor)
    return found


def _fall(steps: np.ndarray, losses: np.ndarray, floor: float | None) -> dict[str, Any]:
    """`channel_mean_loss` is the loss of a student that writes each channel's mean, with the weight in it."""
    known = np.isfinite(losses)
    steps, losses = steps[known], losses[known]
    if not len(losses):
        return {}
    start = float(losses[steps < steps[0] + WINDOW].mean())
    end = float(losses[steps > steps[-1] - WINDOW].mean())
    halved = end < start / 2
    fall = {"start": start, "end": end, "ratio": end / start if start else None, "halved": halved, "channel_mean_loss": floor}
    return fall if halved else fall | {"reason": _reason(start, end, floor)}


def _reason(start: float, end: float, floor: float | None) -> str:
    if not floor:
        return f"From {start:.4g} to {end:.4g}; the features are not at hand to say how much could be explained."
    explained = 1 - end / floor
    first = (
        f"From {start:.4g} to {end:.4g}; writing each channel's mean and seeing nothing of the picture would lose {floor:.4g}. "
    )
    if start / 2 < floor:
        return (
            f"{first}Half of the start lies under that, so it takes explaining {1 - start / 2 / floor:.0%} of the teacher's "
            f"variance from the picture; {max(explained, 0):.0%} was."
        )
    return (
        f"{first}Half of the start is {start / 2:.4g}: the channel means alone would have reached it, and the run ended before."
    )


def variance(features: Artifact) -> float | None:
    """Mean over channels of the variance around the channel's mean, over a fixed sample of pictures; None without any."""
    sums_C: Any = 0.0
    squares_C: Any = 0.0
    count = 0
    for spot in sorted(sample(good_spots(features), PICTURES, seed=0)):
        feature_CHW = feature(features, spot)
        if feature_CHW is not None:
            flat_Cn = feature_CHW.reshape(len(feature_CHW), -1).astype(np.float64)
            sums_C, squares_C = sums_C + flat_Cn.sum(axis=1), squares_C + (flat_Cn**2).sum(axis=1)
            count += flat_Cn.shape[1]
    channels = features.table.spec.channels if features.table and features.table.spec else 1
    return float((squares_C / count - (sums_C / count) ** 2).sum() / channels) if count else None


def loss_weights(identity: Mapping[str, Any]) -> dict[str, float]:
    """Teacher -> weight of its loss, from the config of the training run."""
    config = identity.get("config", {})
    teachers = next((found for found in _under(config, "distillation") if isinstance(found, Mapping)), {})
    return {name: float(loss["weight"]) for name, loss in teachers.items() if isinstance(loss, Mapping) and "weight" in loss}


def teacher_weights(identity: Mapping[str, Any]) -> str | None:
    """The name of the teacher's weights that an artifact was made with, None where no teacher made it."""
    found = [weights for weights in _under(identity.get("config", {}), "weights") if isinstance(weights, str)]
    return found[0] if found else None


def _under(value: Any, key: str) -> list[Any]:
    """Everything that stands under `key`, however deep."""
    if isinstance(value, list | tuple):
        return [found for item in value for found in _under(item, key)]
    if not isinstance(value, Mapping):
        return []
    here = [value[key]] if key in value else []
    return here + [found for name, item in value.items() if name != key for found in _under(item, key)]
