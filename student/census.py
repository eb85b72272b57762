"""What training shows: of each part of the mixture how many samples there are, how often an epoch shows them, what they hold.

Showings, turns, masks and prompts are counted over the whole first epoch. What takes an encoded dialogue is a mean over a few
samples of each part, drawn from the seed: tokens, turns that do not fit, prompts that lie wholly under others.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from student.data import Corpus
from student.mixture import Order
from student.sequence import IGNORED
from student.visits import Visit

EACH = 8  # samples that are looked into, of a part


def census(corpus: Corpus, order: Order, each: int = EACH) -> dict[str, Any]:
    """`epoch`: how many samples one shows; `dropped`: those left out, by reason; `parts`: a line for each part, whose `mean`
    is of `looked_into` samples. Raises DataError where one of these cannot be encoded."""
    shown_N = np.bincount(order.epoch(0)[:, 0], minlength=len(corpus))
    held_N3 = corpus.holdings() * shown_N[:, None]
    lines = {}
    for number, name in enumerate(corpus.parts):
        members = np.flatnonzero(corpus.part_N == number)
        chosen = np.random.default_rng([order.seed, number]).permutation(members)[:each].tolist()
        held = zip(("turns", "masks", "prompts"), held_N3[members].sum(axis=0).tolist(), strict=True)
        counts = {"samples": len(members), "shown": int(shown_N[members].sum()), **dict(held), "looked_into": len(chosen)}
        lines[name] = counts | {"mean": _mean([_looked_into(corpus, Visit(sample, order.seed)) for sample in chosen])}
    return {"epoch": order.size, "dropped": dict(corpus.dropped), "parts": lines}


def _mean(rows: Sequence[dict[str, int]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


def _looked_into(corpus: Corpus, visit: Visit) -> dict[str, int]:
    example = corpus.dialogue(visit)
    picture = len(example.patches_NP) + 2 if example.grid else 0
    visible = np.unique(example.prompt_index_L[example.prompt_index_L >= 0])
    return {
        "image_tokens": picture,
        "text_tokens": len(example.tokens_L) - picture,
        "supervised_tokens": int((example.labels_L != IGNORED).sum()),
        "dropped_turns": example.dropped,
        "hidden_prompts": len(corpus.sample(visit.sample).prompts) - len(visible),
    }
