"""Dialogues as data, before any tokenizer: text in which `[SEG]` stands for a mask and `<PromptK>` for a visual prompt."""

from dataclasses import dataclass, field
from typing import Literal

from schemas.regions import Rle

Task = Literal["segmentation", "caption", "choice", "reference"]
Split = Literal["train", "evaluation"]

SEG = "[SEG]"


def prompt_token(index: int) -> str:
    return f"<Prompt{index}>"


@dataclass(frozen=True)
class Turn:
    """What is asked and what is answered; both may hold `[SEG]` and `<PromptK>`."""

    question: str
    answer: str


@dataclass(frozen=True)
class PromptSlot:
    """The pixels marked by `<Prompt{index}>`."""

    index: int
    rle: Rle


@dataclass(frozen=True)
class Sample:
    """One dialogue about one image. The n-th `[SEG]` of the answers, over all turns, stands for `masks[n]`."""

    sample_id: str
    image_key: str
    split: Split
    task: Task
    turns: list[Turn]
    masks: list[Rle] = field(default_factory=list)
    prompts: list[PromptSlot] = field(default_factory=list)
