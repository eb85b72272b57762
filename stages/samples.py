"""ANNOTATIONS and PROMPTS -> SAMPLES: dialogues as text with `[SEG]` and `<PromptK>`, in the authors' forms (reference 6, 7).

Training dialogues carry up to `turns` turns in varied phrasings; an evaluation dialogue asks one thing in the fixed form.
Each statement is written down once: how often training shows it, in which order, under which prompt numbers and with which
marks is drawn when it is loaded. A picture with evaluation statements is kept out of training altogether, under all its
names; a copy of it of another size is another picture. Every statement that becomes no dialogue is counted in the record, by
task and reason.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.annotations import STATEMENTS, Caption, Conversation, Expression, Reference
from schemas.chance import generator
from schemas.config import Compat, later
from schemas.dialogue import IN_ORDER, Sample, Split, Task
from schemas.regions import PromptKind, Segment, VisualPrompt
from schemas.tables import SAMPLES, Table, plain, revive, without
from stages.base import Inputs, MapStage, Resources, ShardFunction, Tables
from stages.turns import Dialogue, Form, Manner, Regions, may_be_denied, prompts_needed


class SamplesStage(MapStage):
    """How statements become dialogues.

    `by_source`: no training dialogue is of several data sets, so that `train.mixture` can tell them apart. `prompt_kinds`:
    what training may point with, drawn anew at every visit; evaluation points with masks. `phrasings` limits the variety
    of questions. `negative_rate`: the chance of a turn about a prompt that is not there. `evaluation_limit`: the most
    evaluation dialogues that an image may have of one task (0: no limit). `forms`: data sets that are not asked about as others
    of their task: captions and answers that are `short`, expressions that are whole descriptions (`described`) or
    classes (`semantic`), and choices of a class (`classified`), which may bring a negative turn.

    With `compat = "paper"` the expressions that a data set has for a picture are one dialogue, from which each visit draws as
    the release does, and evaluation asks as its scripts do.

    `phrasings` and `seed` have no say in words that a reader has chosen: what ReasonSeg, MUSE and the classes of COCO's things
    and regions ask stands in the annotations, in words drawn from the names of file and record.
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
    compat: Compat = later("correct")
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
        splits = {statement["split"] for column in STATEMENTS for statement in annotation.get(column) or []}
        split: Split = "evaluation" if "evaluation" in splits else "train"
        for task in self.tasks:
            said = writer.statements(task)
            reasons = [_FAILED if failed else writer.why_not(statement, split) for statement in said]
            left_out.update(f"{task}: {reason}" for reason in reasons if reason)
            asked = [statement for statement, reason in zip(said, reasons, strict=True) if not reason]
            left_out[f"{task}: over evaluation_limit"] += self._over_limit(split, len(asked))
            yield from writer.dialogues(task, split, asked)
        for task in _COLUMNS.keys() - set(self.tasks):
            left_out[f"{task}: not among samples.tasks"] += len(annotation.get(_COLUMNS[task]) or [])

    def _over_limit(self, split: Split, count: int) -> int:
        return max(count - self.evaluation_limit, 0) if split == "evaluation" and self.evaluation_limit else 0


_FAILED = "its picture or the picture's prompts failed"
_COLUMNS: Mapping[Task, str] = {
    "segmentation": "expressions",
    "caption": "captions",
    "choice": "choices",
    "reference": "references",
    "conversation": "conversations",
}


class _Writer:
    """Writes the dialogues of one picture."""

    def __init__(self, stage: SamplesStage, annotation: dict[str, Any], prompts: list[VisualPrompt]):
        self.stage, self.annotation, self.key = stage, annotation, annotation["image_key"]
        self.manner = Manner(stage.prompts, stage.phrasings, stage.prompt_kinds, stage.negative_rate, stage.forms, stage.compat)
        segments = revive(list[Segment], annotation["objects"])
        self.regions = Regions(annotation["height"], annotation["width"], segments, prompts)

    def statements(self, task: Task) -> list[Any]:
        """What the picture's annotations say for this task."""
        column = _COLUMNS[task]
        return revive(list[STATEMENTS[column]], self.annotation.get(column) or [])  # type: ignore[misc]

    def why_not(self, statement: Any, split: Split) -> str:
        """Why the statement becomes no dialogue; empty where it does."""
        if statement.split != split:
            return "its picture is evaluated on"
        match statement:
            case Expression():
                return "" if self.regions.segments.keys() >= set(statement.segment_ids) else "it names what is no object"
            case Reference() | Conversation() if prompts_needed(statement) > self.stage.prompts:
                return f"it points with more than {self.stage.prompts} prompts"
            case Reference():
                empty, asked = self.regions.empty, statement.question
                seen = [tag for tag in statement.tags if tag.segment_id not in empty or tag.name in asked]
                pointed = {tag.segment_id for tag in seen}
            case Conversation():
                if not self.regions.segments.keys() >= {tag.segment_id for tag in statement.segmented}:
                    return "it names what is no object"
                pointed = {tag.segment_id for tag in statement.pointed}
            case _:
                pointed = {statement.segment_id}
        return "" if self.regions.pointed.keys() >= pointed else "its object has no prompt"

    def dialogues(self, task: Task, split: Split, statements: Sequence[Any]) -> Iterator[Sample]:
        rng = generator(self.stage.seed, self.key, task)
        order = rng.permutation(len(statements))
        if split == "evaluation":
            groups = [[statements[i]] for i in np.sort(order[: self.stage.evaluation_limit or None])]
        elif task in IN_ORDER:
            groups = [[statement] for statement in statements]
        elif self.stage.compat == "paper":
            groups = self._released_groups([statements[i] for i in order])
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
                yield from self._groups(said)

    def _released_groups(self, statements: Sequence[Any]) -> Iterator[list[Any]]:
        """Expressions by data set, and the groups of all others."""
        drawn = [statement for statement in statements if self._is_drawn(statement)]
        yield from (list(alike) for _, alike in groupby(sorted(drawn, key=_source), key=_source))
        yield from self._training_groups([statement for statement in statements if not self._is_drawn(statement)])

    def _is_drawn(self, statement: Any) -> bool:
        return isinstance(statement, Expression) and self.manner.form(statement) is None

    def _rounds(self, statements: Sequence[Any]) -> Iterator[list[Any]]:
        """All statements, but of the short captions of an object one in each."""
        while statements:
            seen: set[int] = set()
            now, next_time = [], []
            for statement in statements:
                short = isinstance(statement, Caption) and self.manner.form(statement) == "short"
                (next_time if short and statement.segment_id in seen else now).append(statement)
                seen |= {statement.segment_id} if short else set()
            yield now
            statements = next_time

    def _groups(self, statements: Sequence[Any]) -> Iterator[list[Any]]:
        """The statements in order, at most `turns` together and never more than there are prompts to point with."""
        group: list[Any] = []
        taken = 0
        for statement in statements:
            needed = prompts_needed(statement) + may_be_denied(statement, self.manner.form(statement))
            if group and (len(group) == self.stage.turns or taken + needed > self.stage.prompts):
                yield group
                group, taken = [], 0
            group.append(statement)
            taken += needed
        if group:
            yield group

    def _dialogue(self, task: Task, split: Split, group: Sequence[Any], sample_id: str, rng: np.random.Generator) -> Sample:
        said = Dialogue(self.manner, self.regions, split, rng)
        for statement in group:
            said.add(statement)
        source = _source(group[0]) if split == "evaluation" or self.stage.by_source else ""
        draws = self.stage.compat == "paper" and split == "train" and self._is_drawn(group[0])
        references = _references(group) if draws else []
        levels = said.levels if any(said.levels) else []
        return Sample(sample_id, self.key, split, task, said.turns, said.masks, said.slots, source, levels, references)


def _references(expressions: Sequence[Expression]) -> list[int]:
    """Of each the number of its reference among these; where it has none, it counts as a reference of its own."""
    known: dict[Any, int] = {}
    named = ((said.reference, None if said.reference is not None else place) for place, said in enumerate(expressions))
    return [known.setdefault(each, len(known)) for each in named]


def _source(statement: Any) -> str:
    return statement.source
