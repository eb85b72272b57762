"""GLaMM's grounded captions: a caption of the picture, and phrases of it whose objects have masks.

- RefCOCOg: phrases without a place. They and the caption are put in lower case; a phrase stands where its whole words do.
- GranD-f and OpenPSG: phrases with the letters they take up, and one or several masks. Letters may be counted with the quotes
  around the caption or without them: at one of the two places the phrase must stand.
- Flickr30k: COCO's lists; the picture has the caption, each annotation a mask and the letters of its phrase.

A phrase becomes `<p> phrase </p>` and the tag of its object. One that stands nowhere in the caption, or across another, or
whose mask cannot be used, is a fault, and the caption goes without. With `compat = "paper"` its place is what the release takes
for it (`spans`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from schemas.annotations import Conversation, Tag
from schemas.dialogue import Turn
from schemas.regions import Rle
from stages.sources.coco import same_size
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable, integer, split_of, unmarked, wording
from stages.sources.spans import PLACEMENTS, Span

FEWEST_WORDS = 3  # of a caption of Flickr30k; a shorter one says nothing


class _Phrase(NamedTuple):
    """`place` is its first letter and the one after its last; unless it `is_placed`, `text` is looked for. A `text` of None
    stands for whatever is there. Each of `masks` is a COCO segmentation."""

    text: Any
    place: Any
    masks: Any
    is_placed: bool = True


def records(data: Any) -> Any:
    """The records of a file; of COCO's lists one a picture, with its annotations under `phrases`, and those annotations whose
    picture is not listed."""
    if not isinstance(data, dict):
        return data
    phrases: dict[str, list[Any]] = {}
    for each in data["annotations"]:
        phrases.setdefault(str(each["image_id"]), []).append(each)
    pictures = [{**picture, "phrases": phrases.get(str(picture["id"]), [])} for picture in data["images"]]
    listed = {str(picture["id"]) for picture in data["images"]}
    return pictures + [each for number, said in phrases.items() if number not in listed for each in said]


def picture(record: Any) -> str:
    if "image_id" in record and "file_name" not in record:
        raise Unusable("unknown picture", f"the file lists no picture {record['image_id']}")
    return record["file_name"] if "file_name" in record else _only(record)[1]["img_file_name"]


def flatten_caption(record: Any) -> list[Statement]:
    if "file_name" not in record:
        number, said = _only(record)
        phrases = [_Phrase(each.get("sentence"), None, [each.get("segmentation")], is_placed=False) for each in said["refs"]]
        return [_statement(f"caption {number}", said["caption"].lower(), said["caption"].lower().strip(), phrases)]
    caption, what = record["caption"], f"caption of {record['file_name']}"
    size = {"size": (record.get("width"), record.get("height"))}
    if "groundings" in record:
        grounded = [(text, each) for text, each in record["groundings"].items() if each is not None]
        phrases = [_Phrase(text, each.get("token_positives"), each.get("rle_masks")) for text, each in grounded]
        return [_statement(what, caption, caption.strip('"').strip(), phrases) | size]
    if len(caption.split()) < FEWEST_WORDS:
        raise Unusable("text", f"a caption of fewer than {FEWEST_WORDS} words")
    placed = [each for each in record["phrases"] if not each.get("ignore")]
    phrases = [_Phrase(None, _first(each.get("tokens_positive")), [each.get("sam_mask")]) for each in placed]
    return [_statement(what, caption, caption.strip(), phrases) | size]


def _statement(what: str, caption: str, text: str, phrases: list[_Phrase]) -> Statement:
    """`text` is what is taken of the caption, `cut` how many letters of it stood before."""
    return {"what": what, "text": text, "cut": caption.index(text), "phrases": phrases}


def _first(places: Any) -> Any:
    """Where a phrase of Flickr30k is tagged; it may have several places."""
    return places[0] if isinstance(places, list) and places else None


def _only(record: Any) -> tuple[str, Any]:
    """A record of RefCOCOg is a dict of one item."""
    ((number, said),) = record.items()
    return number, said


def add_caption(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    same_size(draft, *statement.get("size", (None, None)))
    text = unmarked(statement["text"])
    placement = PLACEMENTS[file.compat]
    tagged: list[tuple[Span, Tag]] = []

    def add_span(span: Span, draft: Draft, file: SourceFile, statement: Statement) -> None:
        tag = draft.tag(len(tagged), _union(draft, span.masks), file.label, draft.overlaps(span.masks))
        tagged.append((span, tag))

    for span in placement.lay_out(draft, file, statement, _spans(draft, file, statement, text)):
        draft.attempt(file, statement, functools.partial(add_span, span))
    if not tagged:
        raise Unusable("phrase", "no phrase of it has a place and a mask")
    answer = placement.tell(text, tagged)
    draft.conversations.append(Conversation([Turn("", answer)], [], [tag for _, tag in tagged], split, source))


def _spans(draft: Draft, file: SourceFile, statement: Statement, text: str) -> list[Span]:
    spans: list[Span] = []

    def find(said: str) -> tuple[int, int]:
        return PLACEMENTS[file.compat].find(said, text, spans)

    def add(phrase: _Phrase, draft: Draft, file: SourceFile, statement: Statement) -> None:
        spans.append(_span(phrase, text, statement["cut"], find))

    for phrase in statement["phrases"]:
        draft.attempt(file, statement, functools.partial(add, phrase))
    return spans


def _span(phrase: _Phrase, text: str, cut: int, find: Callable[[str], tuple[int, int]]) -> Span:
    if not phrase.is_placed:
        return Span(*find(wording(phrase.text)), phrase.masks, is_sought=True)
    if phrase.place is None:
        raise Unusable("phrase", "it does not say which letters it is")
    start, end = map(integer, phrase.place)
    shifts = (cut,) if phrase.text is None else (cut, 0)
    for first, last in ((start - shift, end - shift) for shift in shifts):
        inside = text[first:last].strip() if 0 <= first <= last <= len(text) else ""
        if inside and (phrase.text is None or inside.casefold() == wording(phrase.text).casefold()):
            first += text[first:last].index(inside)
            return Span(first, first + len(inside), phrase.masks, is_sought=False)
    said = "" if phrase.text is None else f" that say {phrase.text!r}"
    raise Unusable("phrase", f"it has no letters {start} to {end}{said}")


def _union(draft: Draft, masks: Any) -> Rle:
    """What any of the masks covers; each must cover something."""
    if not isinstance(masks, list) or not masks:
        raise Unusable("mask", "a phrase has no mask")
    covered_HW = np.zeros((draft.height, draft.width), dtype=bool)
    for each in masks:
        covered_HW |= draft.region(each).mask()
    return Rle.of(covered_HW)
