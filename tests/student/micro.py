"""The smallest student that has every part of the real one, and samples for it."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from student.config import StudentConfig
from student.model import PixelSail
from student.sequence import Example, collate, encode
from student.vocabulary import Vocabulary

TEXTS = ["Please segment the red circle.", "It is [SEG].", "What is <Prompt1>?", "A small blue square beside it."] * 4
SIZES = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64, "max_side": 64}
HEAD = {"mask_dim": 12, "mask_width": 16, "prompts": 3, "initializer_range": 0.2}


def micro_config(**over: Any) -> StudentConfig:
    return StudentConfig(**(SIZES | HEAD | over))


@cache
def micro_vocabulary(prompts: int = 3) -> Vocabulary:
    return Vocabulary.train(TEXTS, 320, prompts)


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def square(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def pointed(
    rng: np.random.Generator, height: int, width: int, masks: int, *, config: StudentConfig | None = None, **over: Any
) -> Example:
    """A dialogue with `masks` turns that each answer by a mask, two of its regions marked by prompts."""
    marks = [square(height, width, 2 + 7 * k, 3 + 5 * k, 6 + 4 * k) for k in range(max(masks, 2))]
    turns = [(f"Please segment number {k}.", "It is [SEG].") for k in range(masks)] or [("What is <Prompt1>?", "A square.")]
    settings: dict[str, Any] = {
        "turns": turns,
        "image": picture(rng, height, width),
        "prompts": [(0, marks[0]), (1, marks[1])],
        "masks": marks[:masks],
        "sample_id": f"{height}x{width}",
    }
    return encode(micro_vocabulary(), config or micro_config(), **(settings | over))


def spoken(question: str = "What is red?", answer: str = "A circle.", *, config: StudentConfig | None = None) -> Example:
    """A dialogue without a picture."""
    return encode(micro_vocabulary(), config or micro_config(), turns=[(question, answer)], sample_id="text")


def extended(example: Example, tokens: list[int]) -> Example:
    """The example with more text tokens."""
    count = len(tokens)
    grown = {"tokens_L": tokens, "labels_L": [-100] * count, "patch_index_L": [-1] * count, "prompt_index_L": [-1] * count}
    arrays = {name: np.append(getattr(example, name), value) for name, value in grown.items()}
    later = example.positions_3L.max() + 1 + np.tile(np.arange(count), (3, 1))
    return replace(example, **arrays, positions_3L=np.hstack([example.positions_3L, later]))


@torch.no_grad()
def plain(student: PixelSail, example: Example, steps: int) -> list[int]:
    """The likeliest tokens, each by reading everything before it anew."""
    tokens: list[int] = []
    while len(tokens) < steps:
        state = student.states(collate([example]))[-1]
        tokens.append(int(student.logits(state).argmax()))
        if tokens[-1] in (micro_vocabulary().end_of_text, micro_vocabulary().turn_end):
            return tokens[:-1]
        example = extended(example, tokens[-1:])
    return tokens
