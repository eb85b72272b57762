"""The data card: what the annotations of a pool amount to, counted from the finished shards."""

from collections import Counter
from typing import Any

import pyarrow as pa

from schemas.annotations import STATEMENTS
from schemas.artifact import Artifact

MOST_KEYS = 20
_COLUMNS = (
    "image_key",
    *(f"objects.list.element.{name}" for name in ("category", "is_crowd", "source")),
    *(f"{kind}.list.element.{name}" for kind in STATEMENTS for name in ("split", "source")),
    "expressions.list.element.segment_ids",
    "faults",
)


def data_card(annotations: Artifact) -> dict[str, Any]:
    """Counts of pictures, objects, categories, statements and faults, and the pictures that both splits speak of.

    Such a picture leaks: what is trained on it is judged on it. Names do not show that, pixels do.
    """
    counts: dict[str, Counter[str]] = {}
    leaks: list[str] = []
    for table in annotations.iterate(_COLUMNS):
        _count_objects(table, counts)
        for row in table.drop_columns(["objects"]).to_pylist():
            if _count_statements(row, counts) == "both":
                leaks.append(row["image_key"])
    card: dict[str, Any] = {name: dict(sorted(counter.items())) for name, counter in sorted(counts.items())}
    return card | {"split_leak": {"pictures": len(leaks), "image_keys": sorted(leaks)[:MOST_KEYS]}}


def _count_objects(table: pa.Table, counts: dict[str, Counter[str]]) -> None:
    for each in table.column("objects").combine_chunks().flatten().to_pylist():
        _of(counts, "objects")[each["source"]] += 1
        _of(counts, "crowds")[each["source"]] += each["is_crowd"]
        _of(counts, f"categories of {each['source']}")[each["category"]] += bool(each["category"])


def _count_statements(row: dict[str, Any], counts: dict[str, Counter[str]]) -> str:
    splits = set()
    for kind in STATEMENTS:
        for said in row.get(kind) or []:
            splits.add(said["split"])
            _of(counts, kind)[said["split"]] += 1
            _of(counts, "sources")[said["source"]] += 1
    for expression in row["expressions"]:
        _of(counts, "no_target")[expression["split"]] += not expression["segment_ids"]
    _of(counts, "faults").update(fault.split(":")[0] for fault in row["faults"])
    use = "both" if len(splits) > 1 else next(iter(splits), "neither")
    _of(counts, "pictures")[use] += 1
    return use


def _of(counts: dict[str, Counter[str]], name: str) -> Counter[str]:
    return counts.setdefault(name, Counter())
