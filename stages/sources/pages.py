"""An annotation file as pages, one a picture, so that what is said can travel to where the picture's row is made.

Reading a file only takes its records apart and groups them. What they say is checked when a page meets its picture: `place`.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.errors import DataError
from schemas.storage import Folder
from stages.sources import classes, coco, glamm, llava, muse, osprey, perbench, reasonseg, refcoco
from stages.sources.coco import Address, Lists
from stages.sources.config import Kind, SourceFile
from stages.sources.draft import MALFORMED, Draft, Statement, Unusable
from stages.sources.listing import readable
from stages.sources.pickles import read_pickle

NOWHERE: Address = ("none", "")
TEXT_ALONE: Address = ("none", "text")


@dataclass(frozen=True)
class Page:
    """What one file says of one picture. `address` is ("name", file name) or ("id", COCO's number); `ids` are the numbers
    that the file gives to that name."""

    file: int
    address: Address
    ids: list[str] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)


def pages(file: SourceFile) -> Iterator[Page]:
    """Every page of the file; a picture that it only lists has a page without statements."""
    data = _load(file)
    try:
        data = glamm.records(data) if file.kind == "grounded" else data
        lists = Lists.of(data)
        named = {lists.address(number): Page(file.number, lists.address(number)) for number in lists.pictures}
    except MALFORMED as error:
        raise DataError(f"its pictures or categories are malformed: {error!r}", file.url) from None
    for number in lists.pictures:
        named[lists.address(number)].ids.append(number)
    records = _records(file, data)
    del data
    for number in range(len(records)):
        record, records[number] = records[number], None  # a large file is in memory once: as records or as pages
        address, statements = _taken_apart(file, record, lists, number)
        named.setdefault(address, Page(file.number, address)).statements.extend(statements)
    del records
    for address in list(named):
        yield named.pop(address)


def _load(file: SourceFile) -> Any:
    if file.kind == "reasoning":
        return list(reasonseg.records(Folder(file.url)))
    if file.kind in ("refs", "short_captions") and not file.name.endswith(".json"):
        return read_pickle(_bytes(file), file.url)
    try:
        return json.loads(_bytes(file))  # which holds them no longer than it must
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", file.url, "Get the file again.") from None


def _bytes(file: SourceFile) -> bytes:
    try:
        return file.folder.read(file.name)
    except OSError as error:
        raise DataError(f"the {file.kind} file cannot be read: {error}", file.url, "Check the path.") from None


def _records(file: SourceFile, data: Any) -> list[Any]:
    records = data.get("annotations") if isinstance(data, dict) else data
    if not isinstance(records, list):
        raise DataError(f"it holds no list of {file.kind}", file.url, "Check that the config names the right file.")
    return records


def _taken_apart(file: SourceFile, record: Any, lists: Lists, number: int) -> tuple[Address, list[Statement]]:
    what, address = f"record {number}", NOWHERE
    try:
        address = _address(file, record, lists)
        return address, _flattened(file, record, lists)
    except Unusable as error:
        return address, [{"what": what, "fault": (error.kind, error.what)}]
    except MALFORMED as error:
        return address, [{"what": what, "fault": ("record", f"{type(error).__name__}: {error}")}]


def _address(file: SourceFile, record: Any, lists: Lists) -> Address:
    if file.kind in ("detailed", "choices", "references"):
        return "name", readable(record["image_name"])
    if file.kind == "conversations" and llava.is_text_alone(record):
        return TEXT_ALONE
    if file.kind in _NAMED:
        return "name", readable(file.in_pool(_NAMED[file.kind](record)))
    return lists.address(record["image_id"])


_NAMED: Mapping[Kind, Callable[[Any], str]] = {  # what a record calls its picture
    "conversations": lambda record: record["image"],
    "reasoning": lambda record: f"{record['name']}.jpg",
    "grounded": glamm.picture,
    "muse": muse.picture,
    "osprey": lambda record: record["file_name"],
}


def _flattened(file: SourceFile, record: Any, lists: Lists) -> list[Statement]:
    match file.kind:
        case "instances":
            return coco.flatten_instance(record, lists)
        case "panoptic":
            return coco.flatten_panoptic(record, lists)
        case "refs" | "short_captions":
            return refcoco.flatten_reference(record)
        case "captions" | "described":
            return perbench.flatten_description(record)
        case "detailed":
            return perbench.flatten_detailed(record)
        case "choices":
            return perbench.flatten_choices(record)
        case "references":
            return perbench.flatten_reference(record)
        case "conversations":
            return llava.flatten_conversation(record)
        case "reasoning":
            return reasonseg.flatten_question(file, record)
        case "grounded":
            return glamm.flatten_caption(record)
        case "muse":
            return muse.flatten_questions(record)
        case "osprey":
            return osprey.flatten_regions(record)
        case "semantic" | "instance":
            return classes.flatten_classes(record, lists)
        case "classified":
            return classes.flatten_segments(file, record, lists)


def place(draft: Draft, file: SourceFile, page: Page) -> None:
    """Add what the page says to the picture's row."""
    add = _adder(file)
    for statement in page.statements:
        draft.attempt(file, statement, add)


def _adder(file: SourceFile) -> Callable[[Draft, SourceFile, Statement], None]:
    match file.kind:
        case "instances":
            return coco.add_instance
        case "panoptic":
            return coco.segment_adder()
        case "refs":
            return refcoco.add_expression
        case "captions":
            return perbench.add_description
        case "detailed":
            return perbench.add_detailed
        case "choices":
            return perbench.add_choice
        case "references":
            return perbench.add_reference
        case "conversations":
            return llava.add_conversation
        case "reasoning":
            return reasonseg.question_adder()
        case "short_captions":
            return refcoco.add_short_caption
        case "described":
            return perbench.add_described
        case "grounded":
            return glamm.add_caption
        case "muse":
            return muse.add_questions
        case "osprey":
            return osprey.add_regions
        case "semantic":
            return classes.add_semantic
        case "instance":
            return classes.add_instances
        case "classified":
            return classes.add_classified
