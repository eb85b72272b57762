"""A stored dialogue as the student's numbers: to learn from, or to be asked."""

from collections.abc import Mapping

import numpy as np

from schemas.dialogue import SEG, Sample
from schemas.regions import VOID, valued
from student.config import StudentConfig
from student.data.features import Stored
from student.sequence import Example, encode
from student.vocabulary import Vocabulary


def encode_sample(
    vocabulary: Vocabulary,
    config: StudentConfig,
    sample: Sample,
    image_HWC: np.ndarray,
    features: Mapping[str, Stored] | None = None,
) -> Example:
    """The whole dialogue, its answers supervised."""
    return encode(
        vocabulary,
        config,
        turns=[(turn.question, turn.answer) for turn in sample.turns],
        image=image_HWC,
        prompts=[(slot.index, slot.rle.mask()) for slot in sample.prompts],
        masks=_targets(sample, config),
        features=features,
        sample_id=sample.sample_id,
    )


def _targets(sample: Sample, config: StudentConfig) -> list[np.ndarray]:
    """HW bool. In the release uint8: where parts of a target lie over one another, it is as many as they are."""
    if config.compat == "correct":
        return [rle.mask() for rle in sample.masks]
    levels = sample.levels or [[]] * len(sample.masks)
    return [valued(rle, [each for each in own if each.value != VOID]) for rle, own in zip(sample.masks, levels, strict=True)]


def encode_nothing(vocabulary: Vocabulary, config: StudentConfig) -> Example:
    """What stands for a micro-batch of which nothing is left: no sample, has no name and teaches nothing, but goes through the
    student as any other, so that whoever waits for this worker does not wait in vain."""
    return encode(vocabulary, config.model_copy(update={"max_length": 64}), turns=[("", None)])


def encode_question(
    vocabulary: Vocabulary, config: StudentConfig, sample: Sample, image_HWC: np.ndarray, prefix_answer: str | None = None
) -> Example:
    """The dialogue up to its last question, for the student to answer; the answer may be begun by `prefix_answer`."""
    *earlier, last = sample.turns
    given = sum(turn.answer.count(SEG) for turn in earlier)
    return encode(
        vocabulary,
        config,
        turns=[*((turn.question, turn.answer) for turn in earlier), (last.question, None)],
        image=image_HWC,
        prompts=[(slot.index, slot.rle.mask()) for slot in sample.prompts],
        masks=[rle.mask() for rle in sample.masks[:given]],
        sample_id=sample.sample_id,
        prefix_answer=prefix_answer,
    )
