"""Referring segmentation: pictures a second, by batches of 1, 8 and 32, against one question at a time without a cache.

The student is that of bench_train.py, taught what to answer, so that answers are as long as real ones; every eighth question
asks for a sentence, so that the answers of a batch end one after the other. One at a time is measured twice: with keys and
values kept, which is a batch of 1, and by the plain loop that reads everything anew for each token. That all ways give the same
answers and the same masks is checked before anything is timed.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bench_train import ANSWER, ASKED, QUESTIONS, SIZES, TOLD, VOCABULARY
from harness import Bar, Result, interleaved, main, speed
from training import STUDENT, Learner

from schemas.regions import box_mask
from student.config import LossConfig
from student.generate import Generated, generate
from student.model import PixelSail, mask_logits, patch_states
from student.sequence import IGNORED, NOT_A_PATCH, Example, collate, encode

BATCHES = (1, 8, 32)
LONGEST = 40  # tokens of an answer
ANEW, ALONE = "one by one, all anew", "batch of 1"


def questions(count: int, answered: bool) -> list[Example]:
    """Every eighth asks for a sentence."""
    draw, made = np.random.default_rng(0), []
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        asked, answer = (ASKED, TOLD) if number % 8 == 7 else (QUESTIONS[number % 2], ANSWER)
        mask = box_mask((0, 0, width // 2, height), height, width)
        image = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        masks = [mask] if answered and "[SEG]" in answer else []
        turn = (asked, answer if answered else None)
        made.append(encode(VOCABULARY, STUDENT, turns=[turn], image=image, masks=masks, sample_id=str(number)))
    return made


def taught(steps: int) -> PixelSail:
    """A student that has learned what to answer, though not where."""
    learner = Learner.of(
        PixelSail, STUDENT, VOCABULARY, loss=LossConfig(lm_with_masks=1.0, points=64, mask=0, dice=0), columns={}
    )
    learner.rate = 3e-3
    batch = collate(questions(16, answered=True))
    for _ in range(steps):
        learner.learn(batch)
    return learner.student.eval()


@torch.inference_mode()
def anew(student: PixelSail, asked: Sequence[Example]) -> list[Generated]:
    """The plain loop: for each token of each answer, all that stands before it is read again."""
    return [_anew(student, example) for example in asked]


def _anew(student: PixelSail, example: Example) -> Generated:
    tokens: list[int] = []
    states: list[torch.Tensor] = []
    while True:
        batch = collate([longer(example, tokens)]).to(next(student.parameters()).device)
        hidden_RH = student.states(batch)
        if tokens and tokens[-1] == VOCABULARY.seg:
            states.append(hidden_RH[-1])
        token = int(student.logits(hidden_RH[-1]).argmax())
        if len(tokens) == LONGEST or token in (VOCABULARY.end_of_text, VOCABULARY.turn_end):
            break
        tokens.append(token)
    masks = torch.zeros(0, 1, 1)
    if states:
        (features_sHW,) = student.mask_features(patch_states(hidden_RH, batch))
        masks = mask_logits(student.queries(torch.stack(states)), features_sHW)
    return Generated(VOCABULARY.decode(tokens).strip(), tokens, masks)


def longer(example: Example, tokens: list[int]) -> Example:
    """The example with more text behind it."""
    more, fills = len(tokens), {"labels_L": IGNORED, "patch_index_L": NOT_A_PATCH, "prompt_index_L": NOT_A_PATCH}
    arrays = {name: np.pad(getattr(example, name), (0, more), constant_values=fill) for name, fill in fills.items()}
    later = example.positions_3L.max() + 1 + np.tile(np.arange(more), (3, 1))
    arrays |= {"tokens_L": np.append(example.tokens_L, tokens), "positions_3L": np.hstack([example.positions_3L, later])}
    return replace(example, **{name: array.astype(np.int64) for name, array in arrays.items()})


def check_equal(found: Mapping[str, Sequence[Generated]]) -> None:
    """Ends the benchmark where two ways do not answer alike."""
    for way, answers in found.items():
        for one, other in zip(answers, found[ANEW], strict=True):
            if one.token_ids != other.token_ids:
                raise SystemExit(f"{way}: {one.text!r}, all anew: {other.text!r}")
            torch.testing.assert_close(one.mask_logits_nhw, other.mask_logits_nhw, rtol=1e-3, atol=1e-3)


def measure(folder: Path, *, pictures: int, rounds: int, steps: int) -> Result:
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student, asked = taught(steps).to(device), questions(pictures, answered=False)
    ask = partial(generate, student, VOCABULARY, asked, LONGEST)
    ways: dict[str, Callable[[], Sequence[Generated]]] = {ANEW: partial(anew, student, asked)}
    ways |= {f"batch of {batch}": partial(ask, batch=batch) for batch in BATCHES}
    found = {way: answer() for way, answer in ways.items()}
    check_equal(found)
    times = interleaved(ways, rounds)
    table = [
        {
            "way": way,
            "pictures/s": round(pictures / statistics.median(taken), 1),
            "of one by one": round(speed(times, way, ALONE), 2),
            "of all anew": round(speed(times, way, ANEW), 2),
        }
        for way, taken in times.items()
    ]
    lengths = sorted(len(answer.token_ids) for answer in found[ANEW])
    facts = {"tokens of an answer": f"{lengths[0]} to {lengths[-1]}, median {statistics.median(lengths):g}", "device": device}
    bars = [
        Bar("batch of 1 / one by one, all anew", speed(times, ALONE, ANEW), at_least=1.5),
        Bar("batch of 8 / batch of 1", speed(times, "batch of 8", ALONE), at_least=1.5),
        Bar("batch of 32 / batch of 1", speed(times, "batch of 32", ALONE), at_least=2.0),
    ]
    return Result(bars, table, facts)


if __name__ == "__main__":
    sizes = {"pictures": (64, "pictures, a question each"), "rounds": (7, "rounds"), "steps": (60, "of teaching")}
    main("generate", measure, **sizes)
