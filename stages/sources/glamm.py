"""GLaMM's grounded captions: a caption of the picture, and phrases of it whose objects have masks.

- RefCOCOg: phrases without a place. They and the caption are put in lower case; a phrase stands where its whole words do.
- GranD-f and OpenPSG: phrases with the letters they take up, and one or several masks.
- Flickr30k: COCO's lists; the picture has the caption, each annotation a mask and the letters of its phrase.

A phrase becomes `<p> phrase </p>` and the tag of its object. One that stands nowhere in the caption, or across another, or
whose mask cannot be used, is a fault, and the caption goes without.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from schemas.annotations import Conversation, Tag
from schemas.dialogue import PHRASE, PHRASE_END, Turn
from schemas.regions import Rle
from stages.sources.coco import same_size
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable, integer, split_of, unmarked, wording

FEWEST_WORDS = 3  # of a caption of Flickr30k; a shorter one says nothing


class _Phrase(NamedTuple):
    """`place` is its first letter and the one after its last, where it has one; each of `masks` is a COCO segmentation."""

    text: Any
    place: Any
    masks: list[Any]


class _Span(NamedTuple):
    """A phrase's place in the caption, and its masks."""

    start: int
    end: int
    masks: list[Any]


def records(data: Any) -> Any:
    """The records of a file; of COCO's lists one a picture, with its annotations under `phrases`."""
    if not isinstance(data, dict):
        return data
    phrases: dict[Any, list[Any]] = {}
    for each in data["annotations"]:
        phrases.setdefault(each["image_id"], []).append(each)
    return [{**picture, "phrases": phrases.get(picture["id"], [])} for picture in data["images"]]


def picture(record: Any) -> str:
    return record["file_name"] if "file_name" in record else _only(record)[1]["img_file_name"]


def flatten_caption(record: Any) -> list[Statement]:
    if "file_name" not in record:
        number, said = _only(record)
        phrases = [_Phrase(each["sentence"], None, [each["segmentation"]]) for each in said["refs"]]
        return [{"what": f"caption {number}", "text": said["caption"].lower(), "phrases": phrases}]
    told = {
        "what": f"caption of {record['file_name']}",
        "text": record["caption"].strip('"').strip(),
        "size": (record.get("width"), record.get("height")),
    }
    if "groundings" in record:
        grounded = [(text, each) for text, each in record["groundings"].items() if each]
        return [told | {"phrases": [_Phrase(text, each["token_positives"], each["rle_masks"]) for text, each in grounded]}]
    if len(told["text"].split()) < FEWEST_WORDS:
        raise Unusable("text", f"a caption of fewer than {FEWEST_WORDS} words")
    placed = [each for each in record["phrases"] if not each.get("ignore")]
    return [told | {"phrases": [_Phrase("", each["tokens_positive"][0], [each["sam_mask"]]) for each in placed]}]


def _only(record: Any) -> tuple[str, Any]:
    """A record of RefCOCOg is a dict of one item."""
    ((number, said),) = record.items()
    return number, said


def add_caption(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    same_size(draft, *statement.get("size", (None, None)))
    text = unmarked(statement["text"])
    tagged: list[tuple[_Span, Tag]] = []

    def add_span(span: _Span, draft: Draft, file: SourceFile, statement: Statement) -> None:
        tagged.append((span, draft.tag(len(tagged), _union(draft, span.masks), file.label)))

    for span in _apart(draft, file, statement, sorted(_spans(draft, file, statement, text), key=_order)):
        draft.attempt(file, statement, functools.partial(add_span, span))
    if not tagged:
        raise Unusable("phrase", "no phrase of it has a place and a mask")
    answer = _answer(text, tagged)
    draft.conversations.append(Conversation([Turn("", answer)], [], [tag for _, tag in tagged], split, source))


def _spans(draft: Draft, file: SourceFile, statement: Statement, text: str) -> Iterator[_Span]:
    for phrase in statement["phrases"]:
        start, end = _found(phrase.text, text) if phrase.place is None else map(integer, phrase.place)
        if 0 <= start <= end <= len(text) and (inside := text[start:end].strip()):
            start += text[start:end].index(inside)
            yield _Span(start, start + len(inside), phrase.masks)
        else:
            what = f"does not say {phrase.text!r}" if phrase.place is None else f"has no letters {start} to {end}"
            draft.fault("phrase", file, statement["what"], f"it {what}")


def _found(phrase: Any, text: str) -> tuple[int, int]:
    """Where it stands as whole words; nowhere is (-1, -1)."""
    found = re.search(rf"(?<!\w){re.escape(wording(phrase).lower())}(?!\w)", text)
    return found.span() if found else (-1, -1)


def _order(span: _Span) -> tuple[int, int]:
    """By beginning; of two that begin together the longer comes first."""
    return span.start, -span.end


def _apart(draft: Draft, file: SourceFile, statement: Statement, spans: list[_Span]) -> Iterator[_Span]:
    """The spans, in order, that lie across none before."""
    end = 0
    for span in spans:
        if span.start < end:
            draft.fault("phrase", file, statement["what"], f"letters {span.start} to {span.end} lie across another phrase")
        else:
            end = span.end
            yield span


def _union(draft: Draft, masks: list[Any]) -> Rle:
    """What any of the masks covers; each must cover something."""
    if not isinstance(masks, list) or not masks:
        raise Unusable("mask", "a phrase has no mask")
    regions = [draft.region(each) for each in masks]
    return regions[0] if len(regions) == 1 else Rle.of(np.any([region.mask() for region in regions], axis=0))


def _answer(text: str, tagged: list[tuple[_Span, Tag]]) -> str:
    pieces, end = [], 0
    for span, tag in tagged:
        pieces += [text[end : span.start], f"{PHRASE} {text[span.start : span.end]} {PHRASE_END} {tag.name}"]
        end = span.end
    return "".join([*pieces, text[end:]])
