"""An annotation file as pages, one a picture, so that what is said can travel to where the picture's row is made.

Reading a file only takes its records apart and groups them. What they say is checked when a page meets its picture: `place`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from schemas.errors import DataError
from stages.sources import coco, perbench, refcoco
from stages.sources.coco import Address, Lists
from stages.sources.config import SourceFile
from stages.sources.draft import Draft, Statement, Unusable
from stages.sources.listing import readable
from stages.sources.pickles import read_pickle

NOWHERE: Address = ("none", "")


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
        lists = Lists.of(data)
        named = {lists.address(number): Page(file.number, lists.address(number)) for number in lists.pictures}
    except (LookupError, TypeError, AttributeError) as error:
        raise DataError(f"its pictures or categories are malformed: {error!r}", file.url) from None
    for number in lists.pictures:
        named[lists.address(number)].ids.append(number)
    for number, record in enumerate(_records(file, data)):
        address, statements = _taken_apart(file, record, lists, number)
        named.setdefault(address, Page(file.number, address)).statements.extend(statements)
    yield from named.values()


def _load(file: SourceFile) -> Any:
    try:
        data = file.folder.read(file.name)
    except OSError as error:
        raise DataError(f"the {file.kind} file cannot be read: {error}", file.url, "Check the path.") from None
    if file.kind == "refs" and not file.name.endswith(".json"):
        return read_pickle(data, file.url)
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", file.url, "Get the file again.") from None


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
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        return address, [{"what": what, "fault": ("record", f"{type(error).__name__}: {error}")}]


def _address(file: SourceFile, record: Any, lists: Lists) -> Address:
    if file.kind in ("detailed", "choices", "references"):
        return "name", readable(record["image_name"])
    return lists.address(record["image_id"])


def _flattened(file: SourceFile, record: Any, lists: Lists) -> list[Statement]:
    match file.kind:
        case "instances":
            return coco.flatten_instance(record, lists)
        case "panoptic":
            return coco.flatten_panoptic(record, lists)
        case "refs":
            return refcoco.flatten_reference(record)
        case "captions":
            return perbench.flatten_description(record)
        case "detailed":
            return perbench.flatten_detailed(record)
        case "choices":
            return perbench.flatten_choices(record)
        case "references":
            return perbench.flatten_reference(record)


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
