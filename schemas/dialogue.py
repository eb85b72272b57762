"""Dialogues as data, before any tokenizer: text in which `[SEG]` stands for a mask and `<PromptK>` for a visual prompt."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from schemas.regions import Level, PromptKind, Rle

Task = Literal["segmentation", "caption", "choice", "reference", "conversation"]
Split = Literal["train", "evaluation"]

IN_ORDER: frozenset[Task] = frozenset({"conversation"})  # whose turns build on one another
SEG = "[SEG]"
PHRASE, PHRASE_END = "<p>", "</p>"  # around a phrase of an answer that a mask follows
# What stands for something in a dialogue, or is a token of its own in it: no text from outside may say it.
RESERVED = re.compile(r"\[SEG\]|<Prompt\d+>|<NO_Prompt>|<\|\w+\|>|</?vision>|<vpatch>|</?p>")


def prompt_token(index: int) -> str:
    return f"<Prompt{index}>"


def renumbered(text: str, numbers: Mapping[int, int]) -> str:
    """The text with every `<PromptK>` under its new number; those without one keep theirs."""
    return re.sub(r"<Prompt(\d+)>", lambda found: prompt_token(numbers.get(int(found[1]), int(found[1]))), text)


@dataclass(frozen=True)
class Turn:
    """What is asked and what is answered; both may hold `[SEG]` and `<PromptK>`."""

    question: str
    answer: str


@dataclass(frozen=True)
class PromptSlot:
    """What `<Prompt{index}>` points at: by the pixels of `rle` as they are, or, where there are `kinds`, by a mark of one of
    them that is drawn on the region `rle` whenever it is shown. A kind that is named twice is drawn twice as often."""

    index: int
    rle: Rle
    kinds: list[PromptKind] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """One dialogue about one image. Its turns stand each on its own, but for tasks that are `IN_ORDER`. The n-th `[SEG]` of the
    answers, over all turns, stands for `masks[n]`. `source` is the data set that it is from, empty where it may be from
    several.

    `levels` are those of each mask, or empty where no mask has any. Where there are `references`, they say of each turn which
    reference it is a sentence of, and a visit shows some of them as the release does (student/data/visits.py)."""

    sample_id: str
    image_key: str
    split: Split
    task: Task
    turns: list[Turn]
    masks: list[Rle] = field(default_factory=list)
    prompts: list[PromptSlot] = field(default_factory=list)
    source: str = ""
    levels: list[list[Level]] = field(default_factory=list)
    references: list[int] = field(default_factory=list)
