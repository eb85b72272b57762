"""A dialogue while it is written: its turns, the masks of its `[SEG]` and what its `<PromptK>` point at."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from schemas.annotations import Caption, Choice, Conversation, Expression, Reference, Tag
from schemas.config import Compat
from schemas.dialogue import SEG, PromptSlot, Split, Task, Turn, prompt_token
from schemas.regions import Level, PromptKind, Rle, Segment, VisualPrompt, valued
from stages import phrases

Form = Literal["short", "described", "semantic", "classified"]
FORMS: Mapping[Form, tuple[Task, ...]] = {  # what is asked in each
    "short": ("caption", "conversation"),
    "described": ("segmentation",),
    "semantic": ("segmentation",),
    "classified": ("reference",),
}


@dataclass(frozen=True)
class Manner:
    """How dialogues are written; `SamplesStage` says what each of these means."""

    prompts: int
    phrasings: int
    prompt_kinds: Sequence[PromptKind]
    negative_rate: float
    forms: Mapping[str, Form]
    compat: Compat = "correct"

    def form(self, statement: Any) -> Form | None:
        """What `forms` says of the statement's data set. A source is a data set, or one and a split of its own: `mine/val`."""
        return self.forms.get(statement.source) or self.forms.get(statement.source.rpartition("/")[0])


class Regions:
    """The objects of a picture of `height` x `width`, and the masks that point at them."""

    def __init__(self, height: int, width: int, segments: Sequence[Segment], prompts: Sequence[VisualPrompt]):
        self.height, self.width = height, width
        self.segments = {segment.segment_id: segment.rle for segment in segments}
        self.pointed = {prompt.segment_id: prompt.rle for prompt in prompts if prompt.kind == "mask"}
        self.empty = {number for number, rle in self.segments.items() if not rle.area}

    def target(self, segment_ids: Sequence[int]) -> Rle:
        """The union of the segments; empty for none."""
        mask_HW = np.zeros((self.height, self.width), dtype=bool)
        for number in segment_ids:
            mask_HW |= self.segments[number].mask()
        return Rle.of(mask_HW)


class Dialogue:
    """A dialogue being written: its turns, target masks and prompt slots so far."""

    def __init__(self, manner: Manner, regions: Regions, split: Split, rng: np.random.Generator):
        self.manner, self.regions, self.split, self.rng = manner, regions, split, rng
        self.turns: list[Turn] = []
        self.masks: list[Rle] = []
        self.levels: list[list[Level]] = []
        self.slots: list[PromptSlot] = []
        self.tokens: dict[int, str] = {}
        self.kinds: list[PromptKind] = list(manner.prompt_kinds) if split == "train" else []
        self.free = list(range(manner.prompts))
        self.has_denied = False

    @property
    def asks_as_released(self) -> bool:
        """As the authors' evaluation scripts do: spaces are where they have them, and what is pointed at has a hole where its
        parts cover the same pixels."""
        return self.split == "evaluation" and self.manner.compat == "paper"

    def add(self, statement: Any) -> None:
        match statement:
            case Expression():
                self._expression(statement)
            case Caption():
                asked = phrases.SHORT if self.manner.form(statement) == "short" else phrases.DETAIL
                self._maybe_negative(asked)
                token = self._prompt(statement.segment_id, statement.levels)
                self._turn(self._pick(asked).format(token), f"{token}: {statement.text}")
            case Choice():
                asks = phrases.CHOICE_OF_RELEASE if self.asks_as_released else phrases.CHOICE
                self._turn(asks.format(self._prompt(statement.segment_id), statement.question), statement.answer)
            case Reference():
                self._reference(statement)
            case Conversation():
                self._conversation(statement)

    def _expression(self, statement: Expression) -> None:
        answer = self._pick(phrases.FOUND) if statement.segment_ids else phrases.NO_TARGET
        match self.manner.form(statement):
            case "described":
                question = self._pick(phrases.DESCRIBED).format(statement.text)
            case form:
                question = self._pick(phrases.SEGMENT).format(statement.text.strip().lower().removesuffix("."))
                question += f" {phrases.SEMANTIC}" if form == "semantic" else ""
                question = f" {question}" if self.asks_as_released else question
        self._turn(question, answer)
        self._mask(statement.segment_ids, statement.levels)

    def _mask(self, segment_ids: Sequence[int], levels: list[Level]) -> None:
        """That of the next [SEG]."""
        self.masks.append(self.regions.target(segment_ids))
        self.levels.append(levels)

    def _reference(self, statement: Reference) -> None:
        """A tag that the question names is pointed at, each other one of the answer is a mask."""
        if self.manner.form(statement) == "classified" and not self.has_denied:
            self._maybe_negative(phrases.DETAIL)
        asked = set(_names(statement.tags).findall(statement.question))
        pointed = [tag for tag in statement.tags if tag.name in asked]
        segmented = [tag for tag in statement.tags if tag.name not in asked]
        (turn,) = self._untagged([Turn(statement.question, statement.answer)], pointed, segmented)
        self._turn(turn.question, turn.answer if turn.answer != SEG else phrases.FOUND[0])

    def _conversation(self, statement: Conversation) -> None:
        turns = self._untagged(statement.turns, statement.pointed, statement.segmented)
        suffix = f" {phrases.IN_A_WORD}" if self.manner.form(statement) == "short" else ""
        for turn in turns:
            if statement.pointed and not self.has_denied:
                self._maybe_negative(phrases.DETAIL)
            self._turn((turn.question or self._pick(phrases.GROUNDED)) + suffix, turn.answer)

    def _untagged(self, turns: Sequence[Turn], pointed: Sequence[Tag], segmented: Sequence[Tag]) -> list[Turn]:
        """The turns with `<PromptK>` for each tag of `pointed`, and `[SEG]` and its mask for each of `segmented`."""
        tokens = {tag.name: self._prompt(tag.segment_id) for tag in pointed}
        targets = {tag.name: tag for tag in segmented}
        named = _names([*pointed, *segmented])

        def put(found: re.Match[str]) -> str:
            if found[0] in targets:
                self._mask([targets[found[0]].segment_id], targets[found[0]].levels)
            return tokens.get(found[0], SEG)

        return [Turn(named.sub(put, turn.question), named.sub(put, turn.answer)) for turn in turns]

    def _maybe_negative(self, asked: Sequence[str]) -> None:
        if self.split == "train" and self.rng.random() < self.manner.negative_rate and len(self.free) > 1:
            token, self.has_denied = prompt_token(self.free.pop()), True
            self._turn(self._pick(asked).format(token), phrases.NEGATIVE.format(token))

    def _prompt(self, segment_id: int, levels: Sequence[Level] = ()) -> str:
        """The token that points at the segment: one for the whole dialogue, for of two equal marks one would hide the other."""
        if segment_id not in self.tokens:
            index, rle = self.free.pop(0), self.regions.pointed[segment_id]
            rle = Rle.of(valued(rle, levels)) if self.asks_as_released else rle
            self.slots.append(PromptSlot(index, rle, self.kinds))
            self.tokens[segment_id] = prompt_token(index)
        return self.tokens[segment_id]

    def _pick(self, choices: Sequence[str]) -> str:
        """Evaluation asks in the first form; training draws from the first `phrasings` forms."""
        if self.split == "evaluation":
            return choices[0]
        return choices[int(self.rng.integers(min(len(choices), self.manner.phrasings)))]

    def _turn(self, question: str, answer: str) -> None:
        self.turns.append(Turn(question, answer))


def _names(tags: Sequence[Tag]) -> re.Pattern[str]:
    """Finds the tags in a text; of two that begin alike the longer is meant."""
    names = sorted((tag.name for tag in tags), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def prompts_needed(statement: Any) -> int:
    """Prompts that the objects use up that a statement points at."""
    match statement:
        case Expression():
            return 0
        case Reference():
            return sum(tag.name in statement.question for tag in statement.tags)
        case Conversation():
            return len({tag.segment_id for tag in statement.pointed})
        case _:
            return 1


def may_be_denied(statement: Any, form: Form | None) -> bool:
    """Whether a turn may come before it about a prompt that is not there, which then is used up too."""
    return isinstance(statement, Caption) or (isinstance(statement, Reference) and form == "classified")
