"""Osprey-724K: conversations in which `<region1>` is the first of the outlined regions, and detailed descriptions of regions.

All regions of a conversation are pointed at, whether it speaks of them or not. Only the bracketed form stands for a region, for
"region1" alone may be an ordinary word. Where a file describes regions, each description is a caption of its own.

The release (`compat = "paper"`) knows no words: for each region in turn, from the first, it replaces `<region1>` and then
`region1` wherever these letters stand, also within "region10", of which "<object0>0" is left. A number that no region has stays
as it is written. That it takes one region after the other, and brackets first, is our reading of it.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from schemas.annotations import Caption, Conversation, Tag
from schemas.config import Compat
from schemas.dialogue import Turn
from stages.sources.coco import same_size
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable, split_of, unmarked, wording
from stages.sources.llava import exchanges, spoken

_REGION = re.compile(r"<reg(?:i)?on(\d{1,9})>", re.IGNORECASE)  # misspelt in some records


def flatten_regions(record: Any) -> list[Statement]:
    """One statement a conversation, or one a description."""
    regions = [each["segmentation"] for each in record["annotation"]]
    size = {"size": (record.get("width"), record.get("height"))}
    what = f"of {record['file_name']}"
    if "description" not in record:
        return [size | {"what": f"conversation {what}", "regions": regions, "said": spoken(record)}]
    return [
        size | {"what": f"description {number} {what}", "region": region, "text": text}
        for number, (region, text) in enumerate(zip(regions, record["description"], strict=True))
    ]


def add_regions(draft: Draft, file: SourceFile, statement: Statement) -> None:
    same_size(draft, *statement["size"])
    if "text" in statement:
        _add_description(draft, file, statement)
    else:
        _add_conversation(draft, file, statement)


def _add_description(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    parts = statement["text"].split(":")
    text = wording(":".join(part for part in parts if not ("<" in part and ">" in part)))  # without its "<region1>:"
    draft.captions.append(Caption(draft.holding(draft.region(statement["region"]), file.label), text, split, source))


def _add_conversation(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    regions = [draft.region(each) for each in statement["regions"]]
    said = [(unmarked(question), unmarked(answer)) for question, answer in exchanges(statement["said"])]
    if not said or not regions:
        raise Unusable("text", "it has no question with an answer, or no region")
    tags = [draft.tag(number, rle, file.label) for number, rle in enumerate(regions)]
    tagged = _TAGGED[file.compat]
    turns = [Turn(tagged(question, tags), tagged(answer, tags)) for question, answer in said]
    draft.conversations.append(Conversation(turns, tags, [], split, source))


def _tagged(text: str, tags: list[Tag]) -> str:
    def tag(found: re.Match[str]) -> str:
        number = int(found[1])
        if not 1 <= number <= len(tags):
            raise Unusable("unknown object", f"it speaks of {found[0]}, there are {len(tags)} regions")
        return tags[number - 1].name

    return _REGION.sub(tag, text)


def _replaced(text: str, tags: list[Tag]) -> str:
    for number, tag in enumerate(tags, start=1):
        text = re.sub(rf"<regi?on{number}>|regi?on{number}", tag.name, text, flags=re.IGNORECASE)
    return text


_TAGGED: Mapping[Compat, Callable[[str, list[Tag]], str]] = {"correct": _tagged, "paper": _replaced}
