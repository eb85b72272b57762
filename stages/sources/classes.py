"""COCO panoptic as dialogues: its file is read once more, for what can be said of the segments that it names.

- `semantic`: every class of a picture is an expression, "all the ...", for all its segments together.
- `instance`: the things of a class are segmented one by one, from left to right; stuff is segmented as it is.
- `classified`: a segment is pointed at, and its class is to be chosen among others.

Crowds are left out. A class is called by its name without what COCO adds to tell mergers apart ("tree-merged" is a tree).
In the release (`compat = "paper"`) the answer that none of the classes is right ends in a full stop, as no name does.
"""

import re
from typing import Any

from schemas.annotations import Expression, Reference, Tag
from schemas.chance import generator
from stages import phrases
from stages.sources.coco import Lists
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable, split_of, wording

CHOICES = 10  # names to choose among, beside the right one
WITHOUT = 0.05  # how often the right one is not among them
_ADDED = re.compile(r"(-other)?(-merged)?(-stuff)?$")


def flatten_classes(record: Any, lists: Lists) -> list[Statement]:
    """One statement a class."""
    found: dict[Any, list[Any]] = {}
    for segment in _segments(record):
        found.setdefault(segment["category_id"], []).append(segment["id"])
    return [_statement(record, lists, category, {"ids": ids}) for category, ids in found.items()]


def flatten_segments(file: SourceFile, record: Any, lists: Lists) -> list[Statement]:
    """One statement a segment, with the names that it is to be chosen among."""
    every = sorted({_plain(name) for name, _ in lists.categories.values()})
    statements = []
    for segment in _segments(record):
        rng = generator(0, file.label, record["file_name"], segment["id"])
        others = [every[k] for k in rng.permutation(len(every))]
        more = {"ids": [segment["id"]], "others": others[: CHOICES + 1], "lacks": bool(rng.random() < WITHOUT)}
        statements.append(_statement(record, lists, segment["category_id"], more))
    return statements


def _segments(record: Any) -> list[Any]:
    return [each for each in record["segments_info"] if not each.get("iscrowd", 0)]


def _statement(record: Any, lists: Lists, category: Any, more: Statement) -> Statement:
    what = f"class {category} of {record['file_name']}"
    if category not in lists.categories:
        return {"what": what, "fault": ("category", f"the file lists no category {category}")}
    name, is_thing = lists.categories[category]
    return {"what": what, "name": _plain(name), "is_thing": is_thing, **more}


def _plain(name: str) -> str:
    return _ADDED.sub("", name).replace("-", " ")


def add_semantic(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    ids = [draft.known(number, "panoptic") for number in statement["ids"]]
    draft.expressions.append(Expression(f"all the {wording(statement['name'])}", ids, split, source))


def add_instances(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    name, ids = wording(statement["name"]), [draft.known(number, "panoptic") for number in statement["ids"]]
    rng = generator(0, file.label, statement["what"])
    asked = phrases.SEGMENT[int(rng.integers(len(phrases.SEGMENT)))] if split == "train" else phrases.SEGMENT[0]
    left = {each.segment_id: each.rle.box[0] for each in draft.objects if each.segment_id in ids}
    tags = [Tag(f"<object{k}>", number) for k, number in enumerate(sorted(ids, key=lambda number: (left[number], number)))]
    if statement["is_thing"]:
        answer = " ".join(f"{name}-{k} {tag.name}" for k, tag in enumerate(tags, start=1))
    else:
        answer = f"{name} {' '.join(tag.name for tag in tags)}"
    mode = phrases.INSTANCES if statement["is_thing"] else phrases.SEMANTIC
    draft.references.append(Reference(f"{asked.format(name)} {mode}", f"{answer}.", tags, split, source))


def add_classified(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    name, tag = wording(statement["name"]), Tag("<object0>", draft.known(statement["ids"][0], "panoptic"))
    wrong = [other for other in statement["others"] if other != name][:CHOICES]
    if not wrong:
        raise Unusable("category", "there is no other class to choose among")
    rng = generator(1, file.label, statement["what"], statement["ids"][0])
    listed = wrong if statement["lacks"] else [*wrong, name]
    choices = ", ".join([*(listed[k] for k in rng.permutation(len(listed))), phrases.OTHERS])
    asked = phrases.CLASSIFY[int(rng.integers(len(phrases.CLASSIFY)))] if split == "train" else phrases.CLASSIFY[0]
    none = f"{phrases.OTHERS}." if file.compat == "paper" else phrases.OTHERS
    answer = none if statement["lacks"] else name
    draft.references.append(Reference(asked.format(tag.name, choices), f"{tag.name}: {answer}", [tag], split, source))
