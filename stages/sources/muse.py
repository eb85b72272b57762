"""MUSE: questions about several objects of a picture, and answers in which each of them has its mask.

An answer is written out, with `{seg}` for each mask, or it lists the objects alone: then it is put into words here, one way
or the other by chance that follows from the file and the question.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from schemas.annotations import Conversation, Tag
from schemas.chance import generator
from schemas.dialogue import Turn
from stages import phrases
from stages.sources.coco import same_size
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable, split_of, unmarked

_MASK = "{seg}"
_REPHRASED = 0.9  # how often an object is called by its longer name
_APART = 0.5  # how often each object has words of its own


class _Target(NamedTuple):
    segmentation: Any
    name: Any
    longer_name: Any


def picture(record: Any) -> str:
    return record["file_name"] if record.get("file_name") else record["coco_url"].rsplit("/", 1)[-1]


def flatten_questions(record: Any) -> list[Statement]:
    """One statement: all questions of a record are one dialogue."""
    questions, answers = record["questions"], record["answers"]
    texts = record.get("text_answers") or [None] * len(questions)
    targets = [
        [_Target(each["segmentation"], each["category_name"], each.get("rephrased_name")) for each in answer]
        for answer in answers
    ]
    asked = list(zip(questions, texts, targets, strict=True))
    return [{"what": f"questions on {picture(record)}", "size": (record.get("width"), record.get("height")), "asked": asked}]


def add_questions(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    same_size(draft, *statement["size"])
    turns: list[Turn] = []
    tags: list[Tag] = []
    for question, text, targets in statement["asked"]:
        rng = generator(0, file.label, statement["what"], question)
        regions = [draft.region(target.segmentation) for target in targets]
        levels = [draft.overlaps([target.segmentation]) for target in targets]
        masks = enumerate(zip(regions, levels, strict=True), start=len(tags))
        own = [draft.tag(number, rle, file.label, summed) for number, (rle, summed) in masks]
        answer = _told(targets, own, rng) if text is None else _filled(unmarked(text), own)
        turns.append(Turn(f"{unmarked(question)} {phrases.WITH_MASKS}", answer))
        tags += own
    if not turns:
        raise Unusable("text", "it asks nothing")
    draft.conversations.append(Conversation(turns, [], tags, split, source))


def _filled(text: str, tags: Sequence[Tag]) -> str:
    pieces = text.split(_MASK)
    if len(pieces) != len(tags) + 1:
        raise Unusable("count", f"an answer has {len(pieces) - 1} {_MASK} for {len(tags)} objects")
    return "".join(piece + tag for piece, tag in zip(pieces, [*(tag.name for tag in tags), ""], strict=True))


def _told(targets: Sequence[_Target], tags: Sequence[Tag], rng: np.random.Generator) -> str:
    """A sentence that names the objects and marks each."""
    if not targets:
        raise Unusable("count", "a question has neither an answer nor an object")
    names = [unmarked(_name(target, rng)) for target in targets]
    masks = [tag.name for tag in tags]
    if rng.random() < _APART:
        form = phrases.EACH[int(rng.integers(len(phrases.EACH)))]
        return _listed([form.format(name=name, mask=mask) for name, mask in zip(names, masks, strict=True)]) + "."
    form = phrases.TOGETHER[int(rng.integers(len(phrases.TOGETHER)))]
    return form.format(names=_listed(names), masks=_listed(masks), are="are" if len(names) > 1 else "is") + "."


def _name(target: _Target, rng: np.random.Generator) -> Any:
    return target.longer_name if rng.random() < _REPHRASED and target.longer_name else target.name


def _listed(words: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), words[-1]])
