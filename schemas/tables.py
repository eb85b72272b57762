"""The tables: name, version, Arrow schema and file format of everything stored row by row.

A row's nested values are the dataclasses of `regions`, `dialogue` and `annotations`; their Arrow types are read off the
classes, so a field is written down once. Tensors lie in Arrow IPC files to be memory-mapped, plain rows in Parquet.
"""

import dataclasses
import functools
import json
import types
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

from schemas.annotations import Caption, Choice, Conversation, Expression, Reference, Tag
from schemas.codecs import Basis
from schemas.dialogue import PromptSlot, Split, Task, Turn
from schemas.features import FeatureSpec
from schemas.regions import Level, PromptKind, Rle, Segment, VisualPrompt

_LEFT_OUT = b"left_out"
_SCALARS: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


@dataclass(frozen=True)
class Table:
    """One kind of table. `version` is part of every fingerprint: raise it when the meaning of a column changes."""

    name: str
    version: int
    schema: pa.Schema
    format: Literal["parquet", "arrow"]
    doc: str
    spec: FeatureSpec | None = None

    @property
    def has_errors(self) -> bool:
        return "error" in self.schema.names

    def rows(self, rows: Sequence[dict[str, Any]]) -> pa.Table:
        """The Arrow table of `rows`; dataclasses inside become structs, an absent nullable column is null."""
        return pa.Table.from_pylist([plain(row) for row in rows], schema=self.schema)


def without(rows: pa.Table, counts: Mapping[str, int]) -> pa.Table:
    """`rows`, with a note of what was left out of them on purpose: how many, by reason. The shard's footer keeps it."""
    note = {reason: count for reason, count in sorted(counts.items()) if count}
    return rows.replace_schema_metadata({_LEFT_OUT: json.dumps(note)})


def left_out(rows: pa.Table) -> dict[str, int]:
    """What `without` noted."""
    return json.loads((rows.schema.metadata or {}).get(_LEFT_OUT, b"{}"))


def arrow_type(hint: Any) -> pa.DataType:
    """The Arrow type of a Python annotation: scalars, Literal (a string), Sequence/list, optional and dataclasses."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    if dataclasses.is_dataclass(hint):
        return pa.struct([pa.field(name, arrow_type(inner)) for name, inner in _fields(hint)])
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return pa.string()
    if origin in (Union, types.UnionType):
        return arrow_type(next(arg for arg in args if arg is not type(None)))
    if origin in (list, Sequence):
        return pa.list_(arrow_type(args[0]))
    raise TypeError(f"{hint} has no Arrow type")


def plain(value: Any) -> Any:
    """`value` with dataclasses turned into dicts, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {name: plain(getattr(value, name)) for name, _ in _fields(type(value))}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def revive(cls: Any, value: Any) -> Any:
    """The dataclass `cls` (or list of them) back from what `plain` made of it; a field that is null or not there, for it came
    later, has its default."""
    if value is None:
        return None
    if get_origin(cls) in (list, Sequence):
        return [revive(get_args(cls)[0], item) for item in value]
    if isinstance(cls, type) and dataclasses.is_dataclass(cls):
        return cls(**{name: revive(hint, value[name]) for name, hint in _fields(cls) if value.get(name) is not None})
    return value


@functools.cache
def _fields(cls: type) -> list[tuple[str, Any]]:
    """(name, type) of each field of a dataclass."""
    hints = get_type_hints(cls)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(cls)]


def _nullable(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=True)


def _field(name: str, hint: Any) -> pa.Field:
    return pa.field(name, hint if isinstance(hint, pa.DataType) else arrow_type(hint), nullable=False)


_KEY = _field("image_key", str)
_ERROR = _nullable("error", pa.string())

IMAGES = Table(
    "images",
    1,
    pa.schema(
        [
            _KEY,
            _field("width", int),
            _field("height", int),
            _field("format", str),
            _field("bytes", pa.large_binary()),
            _field("sha256", str),
            _field("aliases", list[str]),
            _ERROR,
        ]
    ),
    "parquet",
    "One row a picture: its file bytes as found, its upright size, every name it was found under.",
)
ANNOTATIONS = Table(
    "annotations",
    2,
    pa.schema(
        [
            _KEY,
            _field("width", int),
            _field("height", int),
            _field("objects", list[Segment]),
            _field("expressions", list[Expression]),
            _field("captions", list[Caption]),
            _field("choices", list[Choice]),
            _field("references", list[Reference]),
            _nullable("conversations", arrow_type(list[Conversation])),
            _field("faults", list[str]),
            _ERROR,
        ]
    ),
    "parquet",
    "One row a picture: its upright size and what the datasets say about it. `faults` names each statement that could not be "
    "used. `conversations` came later than the rest: null, or no column at all, says that there are none.",
)
SEGMENTS = Table(
    "segments",
    1,
    pa.schema([_KEY, _field("segments", list[Segment]), _ERROR]),
    "parquet",
    "One row a picture: its regions, by ground truth or by a teacher.",
)
PROMPTS = Table(
    "prompts",
    1,
    pa.schema([_KEY, _field("prompts", list[VisualPrompt]), _ERROR]),
    "parquet",
    "One row a picture: points, boxes, scribbles and masks that point at its segments.",
)
SAMPLES = Table(
    "samples",
    2,
    pa.schema(
        [
            _field("sample_id", str),
            _KEY,
            _field("split", str),
            _field("task", str),
            _field("turns", list[Turn]),
            _field("masks", list[Rle]),
            _field("prompts", list[PromptSlot]),
            _field("source", str),
            _nullable("levels", arrow_type(list[list[Level]])),
            _nullable("references", arrow_type(list[int])),
        ]
    ),
    "parquet",
    "One row a dialogue, as text; shard k holds the dialogues of the pictures of shard k, in their order. `levels` "
    "and `references` came later than the rest.",
)
PREDICTIONS = Table(
    "predictions",
    1,
    pa.schema(
        [
            _field("sample_id", str),
            _KEY,
            _field("task", str),
            _field("question", str),
            _field("expected", str),
            _field("text", str),
            _field("targets", list[Rle]),
            _field("masks", list[Rle]),
            _nullable("levels", arrow_type(list[list[Level]])),
        ]
    ),
    "parquet",
    "One row an evaluated dialogue: what was asked, what was expected, what the student wrote and segmented. `levels`, "
    "which are those of the targets, came later than the rest.",
)


def features(spec: FeatureSpec) -> Table:
    """The table of one teacher's features, to be memory-mapped; `feature` is null where `error` says why."""
    schema = pa.schema(
        [
            _KEY,
            _nullable("height", pa.int32()),
            _nullable("width", pa.int32()),
            _nullable("size", pa.int64()),
            _nullable("crc", pa.uint32()),
            _nullable("feature", pa.large_binary()),
            _ERROR,
        ]
    )
    doc = (
        "One row a picture: a teacher's map of `height` x `width` cells as its codec stores it (schemas/codecs.py), the number "
        "of its bytes and their CRC-32."
    )
    return Table("features", 2, schema, "arrow", doc, spec)


def feature_row(spec: FeatureSpec, key: str, map_Chw: np.ndarray, basis: Basis | None = None) -> dict[str, Any]:
    """The row of a picture in `features(spec)`."""
    stored = spec.encode(map_Chw, key, basis)
    _, height, width = map_Chw.shape
    row = {"image_key": key, "height": height, "width": width, "size": len(stored)}
    return row | {"crc": zlib.crc32(stored), "feature": stored}


ALL = (IMAGES, ANNOTATIONS, SEGMENTS, PROMPTS, SAMPLES, PREDICTIONS)
STRUCTS = (Rle, Level, Segment, VisualPrompt, Expression, Caption, Choice, Tag, Reference, Conversation, Turn, PromptSlot)
WORDS = {"split": Split, "task": Task, "kind": PromptKind}


def markdown() -> str:
    """docs/tables.md, as `make docs` writes it: every table, and the structs inside them."""
    spec = FeatureSpec(teacher="sam2", layer="image_embed", channels=256, grid=(64, 64))
    words = "; ".join(f"`{name}` is one of {', '.join(get_args(kind))}" for name, kind in WORDS.items())
    intro = (
        "# The tables\n\nWritten by `make docs` from [schemas/tables.py](../schemas/tables.py) and the dataclasses in it. Of "
        f"`features` there is a\ntable for each of the project's. Of the strings,\n{words}."
    )
    shown = [_section(f"{t.name}: {t.format}, version {t.version}", t.doc, t.schema) for t in (*ALL, features(spec))]
    inside = [_section(cls.__name__, cls.__doc__ or "", arrow_type(cls), never_null=True) for cls in STRUCTS]
    return "\n\n".join((intro, *shown, "## The structs inside", *inside)) + "\n"


def _section(heading: str, doc: str, columns: Iterable[pa.Field], *, never_null: bool = False) -> str:
    null = lambda column: ", or null" if column.nullable and not never_null else ""  # noqa: E731
    rows = [f"| `{column.name}` | {_words(column.type)}{null(column)} |" for column in columns]
    return "\n".join((f"### {heading}\n", " ".join(doc.split()), "", "| column | type |", "|---|---|", *rows))


def _words(kind: pa.DataType) -> str:
    """The type as a reader calls it: a struct by the name of its class."""
    if pa.types.is_list(kind):
        return f"list of {_words(kind.value_type)}"
    return next((cls.__name__ for cls in STRUCTS if arrow_type(cls) == kind), str(kind))
