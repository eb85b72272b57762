"""A sample as one visit of training shows it: its turns in an order (where they have none of their own), its prompts under
numbers and its marks in shapes that follow from (seed, epoch, showing within the epoch, sample) alone. So every epoch
differs, and every resume and every number of workers agrees.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from schemas.chance import generator
from schemas.dialogue import IN_ORDER, SEG, PromptSlot, Sample, Turn, renumbered
from schemas.marks import Pen
from schemas.regions import Rle

DRAWN = 5  # references of a dialogue of the release


@dataclass(frozen=True)
class Visit:
    """One showing of sample number `sample` of a corpus; `showing` counts those of the same epoch."""

    sample: int
    seed: int = 0
    epoch: int = 0
    showing: int = 0

    def draws(self, *names: object) -> np.random.Generator:
        return generator(self.seed, self.epoch, self.showing, *names)


def shown(sample: Sample, visit: Visit, pen: Pen, prompts: int) -> Sample:
    """The sample as the visit shows it. prompts: how many `<PromptK>` the student has to number them by."""
    sample = drawn(sample, visit)
    rng = visit.draws(sample.sample_id)
    marks = [_marked(slot, visit.draws(sample.sample_id, slot.index), pen) for slot in sample.prompts]
    order, numbers = rng.permutation(len(sample.turns)), rng.permutation(prompts)
    marked = replace(sample, prompts=marks)
    return _renumbered(marked if sample.task in IN_ORDER else _reordered(marked, order.tolist()), numbers)


def _marked(slot: PromptSlot, rng: np.random.Generator, pen: Pen) -> PromptSlot:
    """The slot with a mark of one of its kinds; on an empty region there is none to draw."""
    kind = slot.kinds[int(rng.integers(len(slot.kinds)))] if slot.kinds else "mask"
    if kind == "mask" or not slot.rle.area:
        return replace(slot, kinds=[])
    _, marked_HW = pen.draw(kind, slot.rle.mask(), rng)
    return replace(slot, rle=Rle.of(marked_HW), kinds=[])


def _reordered(sample: Sample, order: Sequence[int]) -> Sample:
    """The sample's turns in another order, and its masks in that of their `[SEG]`; masks without one stay at the end. A turn
    that is left out takes its masks with it, one that comes twice brings them twice."""
    ends = list(accumulate((turn.answer.count(SEG) for turn in sample.turns), initial=0))
    every = range(len(sample.masks))
    chosen = [mask for number in order for mask in every[ends[number] : ends[number + 1]]] + list(every[ends[-1] :])
    masks = [sample.masks[mask] for mask in chosen]
    levels = [sample.levels[mask] for mask in chosen] if sample.levels else []
    return replace(sample, turns=[sample.turns[number] for number in order], masks=masks, levels=levels)


def drawn(sample: Sample, visit: Visit) -> Sample:
    """The sample itself, or where it has `references` what the release shows of it: of each reference one sentence, which hangs
    on the showing and not on the epoch, for each copy of the data chooses once; and of these `DRAWN`, some twice."""
    if not sample.references:
        return sample
    choose = generator(visit.seed, visit.showing, sample.sample_id, "sentences")
    numbers = np.array(sample.references)
    sentences = [int(choose.choice(np.flatnonzero(numbers == number))) for number in np.unique(numbers)]
    chosen = visit.draws(sample.sample_id, "references").choice(sentences, DRAWN)
    return replace(_reordered(sample, chosen.tolist()), references=[])


def _renumbered(sample: Sample, order: np.ndarray) -> Sample:
    """The sample with `<PromptK>` called by the K-th number of `order`, in its texts and in its slots."""
    numbers = dict(enumerate(order.tolist()))
    turns = [Turn(renumbered(turn.question, numbers), renumbered(turn.answer, numbers)) for turn in sample.turns]
    slots = [replace(slot, index=numbers.get(slot.index, slot.index)) for slot in sample.prompts]
    return replace(sample, turns=turns, prompts=slots)
