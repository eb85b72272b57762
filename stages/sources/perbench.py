"""Texts about regions: Pix2Cap's descriptions of panoptic segments, and PerBench's captions, choices and V-T RES.

PerBench points at regions by run lengths alone. A mask that is exactly an object of the picture stands for that object;
any other becomes an object without a category, whose source is the file.
"""

from typing import Any

from schemas.annotations import Caption, Choice, Expression, Reference, Tag
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable, split_of, wording

SHORTEST = 6  # letters of a description that says what is meant


def flatten_description(record: Any) -> list[Statement]:
    """Pix2Cap: one statement a described segment."""
    return [
        {
            "what": f"description of segment {segment['id']}",
            "id": segment["id"],
            "text": segment["description"],
            "split": record.get("split"),
        }
        for segment in record["segments_info"]
    ]


def add_description(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, statement["split"])
    segment_id = draft.known(statement["id"], "panoptic")
    draft.captions.append(Caption(segment_id, _description(statement["text"]), split, source))


def add_described(draft: Draft, file: SourceFile, statement: Statement) -> None:
    """What is described is named, so that it can be asked for."""
    split, source = split_of(file, statement["split"])
    segment_id = draft.known(statement["id"], "panoptic")
    draft.expressions.append(Expression(_description(statement["text"]), [segment_id], split, source))


def _description(said: Any) -> str:
    text = wording(said)
    if len(text) < SHORTEST:
        raise Unusable("text", f"{text!r} describes nothing")
    return text


def flatten_detailed(record: Any) -> list[Statement]:
    return [
        {"what": f"caption {number} of {record['image_name']}", "region": each["segmentation"], "text": each["caption"]}
        for number, each in enumerate(record["object_annotations"])
    ]


def add_detailed(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    text = wording(statement["text"])
    draft.captions.append(Caption(draft.holding(draft.region(statement["region"]), file.label), text, split, source))


def flatten_choices(record: Any) -> list[Statement]:
    return [
        {
            "what": f"question {number} of {record['image_name']}",
            "region": each["object"],
            "question": each["question"],
            "answer": each["answer"],
        }
        for number, each in enumerate(record["mcqs"])
    ]


def add_choice(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    question, answer = wording(statement["question"]), wording(statement["answer"])
    draft.choices.append(Choice(draft.holding(draft.region(statement["region"]), file.label), question, answer, split, source))


def flatten_reference(record: Any) -> list[Statement]:
    """V-T RES: the tags keep the order of the file, which numbers the prompts."""
    asked = {key: record[key] for key in ("question", "answer")}
    return [{"what": f"request on {record['image_name']}", "tags": list(record["segmentations"].items()), **asked}]


def add_reference(draft: Draft, file: SourceFile, statement: Statement) -> None:
    split, source = split_of(file, None)
    question, answer = wording(statement["question"]), wording(statement["answer"])
    regions = [(wording(name), draft.region(region)) for name, region in statement["tags"]]
    tags = [Tag(name, draft.holding(rle, file.label)) for name, rle in regions]
    draft.references.append(Reference(question, answer, tags, split, source))
