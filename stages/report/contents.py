"""What the tables hold, counted: statements, segments, prompts, dialogues, and the faults that were found.

Only the columns that are counted are read, masks are left where they lie.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from schemas.annotations import STATEMENTS
from schemas.artifact import Artifact

LISTS = {"objects": "segment_id"} | dict.fromkeys(STATEMENTS, "source")  # a small leaf of each is enough to count its items


def count(inputs: Mapping[str, Artifact]) -> dict[str, dict[str, Any]]:
    """Artifact -> what it holds -> how many; of the samples by split and task."""
    counted: dict[str, dict[str, Any]] = {}
    for role, artifact in inputs.items():
        match artifact.table.name if artifact.table else None:
            case "images":
                counted[role] = {"file names": _items(artifact, "aliases", "aliases")}
            case "annotations":
                counted[role] = {name: _items(artifact, name, f"{name}.list.element.{leaf}") for name, leaf in LISTS.items()}
            case "segments":
                counted[role] = {"segments": _items(artifact, "segments", "segments.list.element.segment_id")}
            case "prompts":
                counted[role] = {f"{kind} prompts": n for kind, n in sorted(_kinds(artifact).items())}
            case "samples":
                counted[role] = _dialogues(artifact)
    return counted


def _items(artifact: Artifact, column: str, leaf: str) -> int:
    return sum(len(_flat(rows, column)) for rows in artifact.iterate([leaf]))


def _flat(rows: pa.Table, column: str) -> Any:
    """The items of a column of lists, one after another; none of a column that came after the table was made."""
    return rows.column(column).combine_chunks().flatten() if column in rows.column_names else []


def _kinds(artifact: Artifact) -> Counter[str]:
    marks = (mark for rows in artifact.iterate(["prompts.list.element.kind"]) for mark in _flat(rows, "prompts").to_pylist())
    return Counter(mark["kind"] for mark in marks)


def _dialogues(artifact: Artifact) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for rows in artifact.iterate(["split", "task"]):
        for row in rows.to_pylist():
            found.setdefault(row["split"], Counter())[row["task"]] += 1
    return {split: dict(sorted(found[split].items())) for split in sorted(found, reverse=True)}


def pictures_in_both_splits(samples: Artifact) -> int:
    """How many pictures are trained on and evaluated on both; it should be none."""
    sides: dict[str, set[str]] = {"train": set(), "evaluation": set()}
    for rows in samples.iterate(["image_key", "split"]):
        for row in rows.to_pylist():
            sides[row["split"]].add(row["image_key"])
    return len(sides["train"] & sides["evaluation"])


def faults(annotations: Artifact) -> Iterator[str]:
    """`image_key: fault`, a statement of a dataset that could not be used each."""
    for rows in annotations.iterate(["image_key", "faults"]):
        for row in rows.to_pylist():
            yield from (f"{row['image_key']}: {fault}" for fault in row["faults"])
