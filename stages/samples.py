"""ANNOTATIONS and PROMPTS -> SAMPLES: dialogues as text with `[SEG]` and `<PromptK>`, in the authors' forms (reference 6, 7).

Training dialogues carry up to `turns` turns in varied phrasings; an evaluation dialogue asks one thing in the fixed form.
Each statement is written down once: how often training shows it, in which order, under which prompt numbers and with which
marks is drawn when it is loaded. A picture with evaluation statements is kept out of training altogether. Every statement
that becomes no dialogue is counted in the record, by task and reason.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from schemas.annotations import Caption, Choice, Conversation, Expression, Reference, Tag
from schemas.chance import generator
from schemas.config import later
from schemas.dialogue import IN_ORDER, SEG, PromptSlot, Sample, Split, Task, Turn, prompt_token
from schemas.regions import PromptKind, Rle, Segment, VisualPrompt
from schemas.tables import SAMPLES, Table, plain, revive, without
from stages import phrases
from stages.base import Inputs, MapStage, Resources, ShardFunction, Tables

Form = Literal["short", "described", "semantic"]


class SamplesStage(MapStage):
    """How statements become dialogues.

    `by_source`: no training dialogue is of several data sets, so that `train.mixture` can tell them apart. `prompt_kinds`:
    what training may point with, drawn anew at every visit; evaluation points with masks. `phrasings` limits the variety
    of questions. `negative_rate`: the chance of a turn about a prompt that is not there. `evaluation_limit`: the most
    evaluation dialogues that an image may have of one task (0: no limit). `forms`: data sets that are not asked about as others
    of their task: captions and answers that are `short`, expressions that are whole descriptions (`described`) or
    classes (`semantic`).
    """

    tasks: tuple[Task, ...] = ("segmentation", "caption", "choice", "reference")
    turns: int = 5
    by_source: bool = False
    prompts: int = 15
    phrasings: int = 8
    prompt_kinds: tuple[PromptKind, ...] = ("mask",)
    negative_rate: float = 0.05
    evaluation_limit: int = 0
    forms: dict[str, Form] = later({})
    seed: int = 0

    def table(self) -> Table:
        return SAMPLES

    def open(self, resources: Resources, whole: Inputs) -> ShardFunction:
        return self.write

    def write(self, inputs: Tables) -> pa.Table:
        pairs = zip(inputs["annotations"].to_pylist(), inputs["prompts"].to_pylist(), strict=True)
        left_out: Counter[str] = Counter()
        rows = [plain(sample) for annotation, prompts in pairs for sample in self._of_image(annotation, prompts, left_out)]
        return without(SAMPLES.rows(rows), left_out)

    def _of_image(self, annotation: dict[str, Any], prompts: dict[str, Any], left_out: Counter[str]) -> Iterator[Sample]:
        writer = _Writer(self, annotation, revive(list[VisualPrompt], prompts["prompts"]))
        failed = annotation["error"] or prompts["error"]
        splits = {statement["split"] for name, _ in _NAMES.values() for statement in annotation.get(name) or []}
        split: Split = "evaluation" if "evaluation" in splits else "train"
        for task in self.tasks:
            said = writer.statements(task)
            reasons = [_FAILED if failed else writer.why_not(statement, split) for statement in said]
            left_out.update(f"{task}: {reason}" for reason in reasons if reason)
            asked = [statement for statement, reason in zip(said, reasons, strict=True) if not reason]
            left_out[f"{task}: over evaluation_limit"] += self._over_limit(split, len(asked))
            yield from writer.dialogues(task, split, asked)
        for task in _NAMES.keys() - set(self.tasks):
            left_out[f"{task}: not among samples.tasks"] += len(annotation.get(_NAMES[task][0]) or [])

    def _over_limit(self, split: Split, count: int) -> int:
        return max(count - self.evaluation_limit, 0) if split == "evaluation" and self.evaluation_limit else 0


_FAILED = "its picture or the picture's prompts failed"
_NAMES: dict[Task, tuple[str, type]] = {
    "segmentation": ("expressions", Expression),
    "caption": ("captions", Caption),
    "choice": ("choices", Choice),
    "reference": ("references", Reference),
    "conversation": ("conversations", Conversation),
}


class _Writer:
    """Writes the dialogues of one picture."""

    def __init__(self, stage: SamplesStage, annotation: dict[str, Any], prompts: list[VisualPrompt]):
        self.stage, self.annotation, self.key = stage, annotation, annotation["image_key"]
        self.segments = {s.segment_id: s.rle for s in revive(list[Segment], annotation["objects"])}
        self.pointed = {prompt.segment_id: prompt.rle for prompt in prompts if prompt.kind == "mask"}
        self.empty = {number for number, rle in self.segments.items() if not rle.area}

    def statements(self, task: Task) -> list[Any]:
        """What the picture's annotations say for this task."""
        name, cls = _NAMES[task]
        return revive(list[cls], self.annotation.get(name) or [])  # type: ignore[valid-type]

    def why_not(self, statement: Any, split: Split) -> str:
        """Why the statement becomes no dialogue; empty where it does."""
        if statement.split != split:
            return "its picture is evaluated on"
        match statement:
            case Expression():
                return "" if self.segments.keys() >= set(statement.segment_ids) else "it names what is no object"
            case Reference() | Conversation() if _prompts_needed(statement) > self.stage.prompts:
                return f"it points with more than {self.stage.prompts} prompts"
            case Reference():
                seen = [tag for tag in statement.tags if tag.segment_id not in self.empty or tag.name in statement.question]
                pointed = {tag.segment_id for tag in seen}
            case Conversation():
                if not self.segments.keys() >= {tag.segment_id for tag in statement.segmented}:
                    return "it names what is no object"
                pointed = {tag.segment_id for tag in statement.pointed}
            case _:
                pointed = {statement.segment_id}
        return "" if self.pointed.keys() >= pointed else "its object has no prompt"

    def form(self, statement: Caption | Expression | Conversation) -> Form | None:
        """What `forms` says of the statement's data set. A source is a data set, or one and a split of its own: `mine/val`."""
        forms, source = self.stage.forms, statement.source
        return forms.get(source) or forms.get(source.rpartition("/")[0])

    def dialogues(self, task: Task, split: Split, statements: Sequence[Any]) -> Iterator[Sample]:
        rng = generator(self.stage.seed, self.key, task)
        order = rng.permutation(len(statements))
        if split == "evaluation":
            groups = [[statements[i]] for i in np.sort(order[: self.stage.evaluation_limit or None])]
        elif task in IN_ORDER:
            groups = [[statement] for statement in statements]
        else:
            groups = self._training_groups([statements[i] for i in order])
        for number, group in enumerate(groups):
            yield self._dialogue(task, split, group, f"{self.key}-{task}-{number}", rng)

    def _training_groups(self, statements: Sequence[Any]) -> Iterator[list[Any]]:
        """The statements of each training dialogue. An object has one short caption in a dialogue: the question for all of them
        is the same."""
        sources = [list(statements)]
        if self.stage.by_source:
            sources = [list(alike) for _, alike in groupby(sorted(statements, key=_source), key=_source)]
        for alike in sources:
            for said in self._rounds(alike):
                yield from _groups(said, self.stage.turns, self.stage.prompts)

    def _rounds(self, statements: Sequence[Any]) -> Iterator[list[Any]]:
        """All statements, but of the short captions of an object one in each."""
        while statements:
            seen: set[int] = set()
            now, next_time = [], []
            for statement in statements:
                short = isinstance(statement, Caption) and self.form(statement) == "short"
                (next_time if short and statement.segment_id in seen else now).append(statement)
                seen |= {statement.segment_id} if short else set()
            yield now
            statements = next_time

    def _dialogue(self, task: Task, split: Split, group: Sequence[Any], sample_id: str, rng: np.random.Generator) -> Sample:
        draft = _Draft(self, split, rng)
        for statement in group:
            draft.add(statement)
        source = _source(group[0]) if split == "evaluation" or self.stage.by_source else ""
        return Sample(sample_id, self.key, split, task, draft.turns, draft.masks, draft.slots, source)

    def target(self, segment_ids: Sequence[int]) -> Rle:
        """The union of the segments; empty for none."""
        mask = np.zeros((self.annotation["height"], self.annotation["width"]), dtype=bool)
        for number in segment_ids:
            mask |= self.segments[number].mask()
        return Rle.of(mask)


class _Draft:
    """A dialogue being written: its turns, target masks and prompt slots so far."""

    def __init__(self, writer: _Writer, split: Split, rng: np.random.Generator):
        self.writer, self.split, self.rng = writer, split, rng
        self.turns: list[Turn] = []
        self.masks: list[Rle] = []
        self.slots: list[PromptSlot] = []
        self.tokens: dict[int, str] = {}
        self.kinds: list[PromptKind] = list(writer.stage.prompt_kinds) if split == "train" else []
        self.free = list(range(writer.stage.prompts))

    def add(self, statement: Any) -> None:
        match statement:
            case Expression():
                self._expression(statement)
            case Caption():
                asked = phrases.SHORT if self.writer.form(statement) == "short" else phrases.DETAIL
                self._maybe_negative(asked)
                token = self._prompt(statement.segment_id)
                self._turn(self._pick(asked).format(token), f"{token}: {statement.text}")
            case Choice():
                token = self._prompt(statement.segment_id)
                self._turn(phrases.CHOICE.format(token, statement.question), statement.answer)
            case Reference():
                self._reference(statement)
            case Conversation():
                self._conversation(statement)

    def _expression(self, statement: Expression) -> None:
        answer = self._pick(phrases.FOUND) if statement.segment_ids else phrases.NO_TARGET
        match self.writer.form(statement):
            case "described":
                question = self._pick(phrases.DESCRIBED).format(statement.text)
            case form:
                question = self._pick(phrases.SEGMENT).format(statement.text.strip().lower().removesuffix("."))
                question += f" {phrases.SEMANTIC}" if form == "semantic" else ""
        self._turn(question, answer)
        self.masks.append(self.writer.target(statement.segment_ids))

    def _reference(self, statement: Reference) -> None:
        """A tag that the question names is pointed at, each other one of the answer is a mask."""
        asked = set(_names(statement.tags).findall(statement.question))
        pointed = [tag for tag in statement.tags if tag.name in asked]
        segmented = [tag for tag in statement.tags if tag.name not in asked]
        (turn,) = self._untagged([Turn(statement.question, statement.answer)], pointed, segmented)
        self._turn(turn.question, turn.answer if turn.answer != SEG else phrases.FOUND[0])

    def _conversation(self, statement: Conversation) -> None:
        turns = self._untagged(statement.turns, statement.pointed, statement.segmented)
        if statement.pointed:
            self._maybe_negative(phrases.DETAIL)
        suffix = f" {phrases.IN_A_WORD}" if self.writer.form(statement) == "short" else ""
        for turn in turns:
            self._turn((turn.question or self._pick(phrases.GROUNDED)) + suffix, turn.answer)

    def _untagged(self, turns: Sequence[Turn], pointed: Sequence[Tag], segmented: Sequence[Tag]) -> list[Turn]:
        """The turns with `<PromptK>` for each tag of `pointed`, and `[SEG]` and its mask for each of `segmented`."""
        tokens = {tag.name: self._prompt(tag.segment_id) for tag in pointed}
        targets = {tag.name: tag.segment_id for tag in segmented}
        named = _names([*pointed, *segmented])

        def put(found: re.Match[str]) -> str:
            if found[0] in targets:
                self.masks.append(self.writer.target([targets[found[0]]]))
            return tokens.get(found[0], SEG)

        return [Turn(named.sub(put, turn.question), named.sub(put, turn.answer)) for turn in turns]

    def _maybe_negative(self, asked: Sequence[str]) -> None:
        if self.split == "train" and self.rng.random() < self.writer.stage.negative_rate and len(self.free) > 1:
            token = prompt_token(self.free.pop())
            self._turn(self._pick(asked).format(token), phrases.NEGATIVE.format(token))

    def _prompt(self, segment_id: int) -> str:
        """The token that points at the segment: one for the whole dialogue, for of two equal marks one would hide the other."""
        if segment_id not in self.tokens:
            index = self.free.pop(0)
            self.slots.append(PromptSlot(index, self.writer.pointed[segment_id], self.kinds))
            self.tokens[segment_id] = prompt_token(index)
        return self.tokens[segment_id]

    def _pick(self, choices: Sequence[str]) -> str:
        """Evaluation asks in the first form; training draws from the first `phrasings` forms."""
        if self.split == "evaluation":
            return choices[0]
        return choices[int(self.rng.integers(min(len(choices), self.writer.stage.phrasings)))]

    def _turn(self, question: str, answer: str) -> None:
        self.turns.append(Turn(question, answer))


def _names(tags: Sequence[Tag]) -> re.Pattern[str]:
    """Finds the tags in a text; of two that begin alike the longer is meant."""
    names = sorted((tag.name for tag in tags), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def _source(statement: Any) -> str:
    return statement.source


def _groups(statements: Sequence[Any], most: int, prompts: int) -> Iterator[list[Any]]:
    """The statements in order, at most `most` together and never more than there are prompts to point with."""
    group: list[Any] = []
    taken = 0
    for statement in statements:
        needed = _prompts_needed(statement)
        if group and (len(group) == most or taken + needed > prompts):
            yield group
            group, taken = [], 0
        group.append(statement)
        taken += needed
    if group:
        yield group


def _prompts_needed(statement: Any) -> int:
    """Prompts that a turn uses up; a caption may bring a turn about one that is not there."""
    match statement:
        case Expression():
            return 0
        case Caption():
            return 2
        case Reference():
            return sum(tag.name in statement.question for tag in statement.tags)
        case Conversation():
            return len({tag.segment_id for tag in statement.pointed})
        case _:
            return 1
