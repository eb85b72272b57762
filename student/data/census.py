"""What training shows: of each part of the mixture how many samples there are, how often an epoch and the whole run show them,
what they hold.

Showings, turns, masks and prompts are counted over the whole first epoch. What takes an encoded dialogue is a mean over a few
samples of each part, drawn from the seed: tokens, turns that do not fit, prompts that lie wholly under others.

Shapes: N samples of the corpus, P parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from schemas.errors import DataError
from student.data.corpus import Corpus
from student.data.mixture import Order
from student.data.visits import Visit
from student.sequence import IGNORED, Example, layout_of

EACH = 8  # samples that are looked into, of a part
NAMED = 5  # parts that the line names


def census(corpus: Corpus, order: Order, until: int, each: int = EACH) -> dict[str, Any]:
    """`epoch`: how many samples one shows; `run`: how many come before position `until`; `dropped`: those left out, by reason;
    `parts`: a line for each part, whose `mean` is of `looked_into` samples without the `skipped` ones, whose first turn is too
    long. Raises DataError where there are no samples, where all of these are skipped, or one of them cannot be encoded."""
    if len(corpus) == 0:
        raise DataError(f"no samples to train on ({dict(corpus.dropped)} left out)", "the training corpus")
    shown_N = np.bincount(order.epoch(0)[:, 0], minlength=len(corpus))
    held_N3 = corpus.holdings() * shown_N[:, None]
    in_run, lines = seen(corpus, order, until), {}
    for number, name in enumerate(corpus.parts):
        members = np.flatnonzero(corpus.part_N == number)
        chosen = np.random.default_rng([order.seed, number]).permutation(members)[:each].tolist()
        held = zip(("turns", "masks", "prompts"), held_N3[members].sum(axis=0).tolist(), strict=True)
        counts = {"samples": len(members), "shown": int(shown_N[members].sum()), "run": in_run[name], **dict(held)}
        looks = [(sample, corpus.fitting(Visit(sample, order.seed))) for sample in chosen]
        found = [_looked_into(corpus, sample, example) for sample, example in looks if example]
        looked = {"looked_into": len(chosen), "skipped": len(chosen) - len(found)}
        lines[name] = counts | looked | {"mean": _mean(found)}
    if not any(line["mean"] for line in lines.values()):
        what = f"no first turn of the samples that were looked into fits in {corpus.config.max_length} tokens"
        limit = layout_of(corpus.config, corpus.vocabulary).limit
        raise DataError(what, "the training corpus", f"Raise student.max_length, or lower {limit}.")
    return {"epoch": order.size, "run": until, "dropped": dict(corpus.dropped), "parts": lines}


def seen(corpus: Corpus, order: Order, position: int) -> dict[str, int]:
    """How many samples of each part come before `position`. Every epoch shows as many of a part as any other."""
    epochs, place = divmod(position, order.size)
    parts = [corpus.part_N[samples] for samples in (order.epoch(0)[:, 0], order.epoch(epochs)[:place, 0])]
    whole_P, rest_P = (np.bincount(part, minlength=len(corpus.parts)) for part in parts)
    return dict(zip(corpus.parts, (epochs * whole_P + rest_P).tolist(), strict=True))


def told(found: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """A census as the rows of a table, those that are shown most first, and as a line."""
    parts = sorted(found["parts"].items(), key=lambda part: -part[1]["shown"])
    rows = [
        {"part": name, **{what: value for what, value in line.items() if what != "mean"}, **line["mean"]}
        for name, line in parts
    ]
    named = [f"{name} {line['shown']:,}{_length(line['mean'])}" for name, line in parts[:NAMED]]
    more = [f"{len(parts) - NAMED} parts more"] if len(parts) > NAMED else []
    lost = [f"{count:,} left out: {reason}" for reason, count in found["dropped"].items()]
    epoch = f"{found['epoch']:,} samples an epoch: {', '.join([*named, *more])}"
    return rows, " · ".join([epoch, f"{found['run']:,} in the run", *lost])


def _length(mean: Mapping[str, float]) -> str:
    return f" of {mean['image_tokens'] + mean['text_tokens']:.0f} tokens" if mean else ""


def _mean(rows: Sequence[dict[str, int]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


def _looked_into(corpus: Corpus, sample: int, example: Example) -> dict[str, int]:
    picture = layout_of(corpus.config, corpus.vocabulary).opening(example.grid).picture
    visible = np.unique(example.prompt_index_L[example.prompt_index_L >= 0])
    return {
        "image_tokens": picture,
        "text_tokens": len(example.tokens_L) - picture,
        "supervised_tokens": int((example.labels_L != IGNORED).sum()),
        "dropped_turns": example.dropped,
        "hidden_prompts": len(corpus.sample(sample).prompts) - len(visible),
    }
