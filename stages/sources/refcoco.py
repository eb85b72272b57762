"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: phrases that name annotated objects of a picture, or nothing in it.

The text is the cleaned `sent`, as in the published evaluation, or `raw` where there is none. gRefCOCO's annotation ids are
lists; -1 or `no_target` say that the phrase names nothing. Read as short captions, the phrases are said of the one object that
each names.

As in the release (`compat = "paper"`), phrases to learn from are `raw` in lower case, and of RefCOCO's references to one object
the last one is kept. Of short captions its rules say nothing: they stay `sent`.
"""

from typing import Any

from schemas.annotations import Caption, Expression
from schemas.dialogue import Split
from schemas.regions import Level, overlaps
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable, integer, split_of, wording

NOTHING = -1


def flatten_reference(record: Any) -> list[Statement]:
    """One statement a sentence."""
    named = {"targets": _targets(record), "split": record.get("split"), "is_list": isinstance(record["ann_id"], list)}
    named["reference"] = _number(record.get("ref_id"))
    what = f"reference {record.get('ref_id')}"
    if not record["sentences"]:
        return [{"what": what, "fault": ("text", "it has no sentences")}]
    return [
        {"what": f"{what} sentence {said.get('sent_id')}", **_texts(said.get("sent"), said.get("raw")), **named}
        for said in record["sentences"]
    ]


def _texts(sent: Any, raw: Any) -> Statement:
    return {"text": sent or raw, "raw": raw or sent}


def _number(ref_id: Any) -> int | None:
    try:
        return integer(ref_id)
    except ValueError:
        return None


def _targets(record: Any) -> list[Any]:
    listed = record["ann_id"] if isinstance(record["ann_id"], list) else [record["ann_id"]]
    if record.get("no_target") or listed == [NOTHING]:
        return []
    if not listed:
        raise Unusable("record", "it names no annotation and does not say that there is none")
    return list(dict.fromkeys(listed))


def add_expression(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, statement["split"])
    targets = [draft.known(number, "instances", "panoptic") for number in statement["targets"]]
    is_raw = file.compat == "paper" and split == "train"
    text = wording(statement["raw"]).lower() if is_raw else wording(statement["text"])
    said = Expression(text, targets, split, source, _summed(draft, statement, split, targets), statement["reference"])
    if is_raw and not statement["is_list"]:
        draft.expressions[:] = [each for each in draft.expressions if not _is_replaced(each, said)]
    draft.expressions.append(said)


def _summed(draft: Draft, statement: Statement, split: Split, targets: list[int]) -> list[Level]:
    """What the release sums: of a reference to an annotation its polygons, of one to a list of them the objects, these only to
    learn from."""
    if not statement["is_list"]:
        return draft.overlaps([draft.drawn[number] for number in targets if number in draft.drawn])
    return overlaps([each.rle for each in draft.objects if each.segment_id in targets]) if split == "train" else []


def _is_replaced(earlier: Expression, said: Expression) -> bool:
    """Whether it is of another reference to the same object in the same file."""
    same = (earlier.source, earlier.segment_ids) == (said.source, said.segment_ids)
    return same and earlier.reference != said.reference


def add_short_caption(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, statement["split"])
    if len(statement["targets"]) != 1:
        raise Unusable("not one object", f"it is said of {len(statement['targets'])} objects, a caption is of one")
    segment_id = draft.known(statement["targets"][0], "instances", "panoptic")
    levels = draft.overlaps([draft.drawn[segment_id]]) if segment_id in draft.drawn else []
    draft.captions.append(Caption(segment_id, wording(statement["text"]), split, source, levels))
