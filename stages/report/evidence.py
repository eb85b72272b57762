"""Report: everything that the page is drawn from, gathered once from the artifacts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.artifact import Artifact
from schemas.tables import plain
from stages.report import contents, scores, training
from stages.report.lineage import Made, family
from stages.report.reading import Prediction, read_predictions

STUDENTS = ("trained", "untrained")


@dataclass(frozen=True)
class Report:
    """`examples` pictures a sheet, drawn by `seed`; `family` is every artifact behind the numbers, ancestors first."""

    title: str
    examples: int
    seed: int
    inputs: Mapping[str, Artifact]
    predictions: Mapping[str, list[Prediction]]
    history: Mapping[str, np.ndarray]
    metrics: Mapping[str, Any]
    family: Mapping[str, Made]

    @classmethod
    def gather(cls, inputs: Mapping[str, Artifact], *, title: str, examples: int, seed: int, meteor: bool) -> "Report":
        predictions = {name: read_predictions(found) for name, found in under(inputs, "predictions").items()}
        history = training.read_history(inputs["train"]) if "train" in inputs else {}
        made = family(inputs)
        metrics: dict[str, Any] = {name: scores.of(predictions[name], meteor) for name in STUDENTS if name in predictions}
        weights = training.loss_weights(inputs["train"].identity) if "train" in inputs else {}
        metrics["distillation"] = training.distillation(history, under(inputs, "features"), weights)
        metrics["contents"] = contents.count(inputs)
        if "samples" in inputs:
            metrics["pictures_in_both_splits"] = contents.pictures_in_both_splits(inputs["samples"])
        metrics["artifacts"] = {name: _measured(found) for name, found in made.items() if found.record}
        return cls(title, examples, seed, inputs, predictions, history, metrics, made)

    @property
    def images(self) -> Artifact | None:
        return self.inputs.get("images")

    def under(self, prefix: str) -> dict[str, Artifact]:
        return under(self.inputs, prefix)

    @property
    def random_teachers(self) -> list[str]:
        """The artifacts that a teacher with random weights made."""
        return [name for name, made in self.family.items() if made.has_random_teacher]


def under(inputs: Mapping[str, Artifact], prefix: str) -> dict[str, Artifact]:
    """name -> artifact of the roles `<prefix>/<name>`, in order of name."""
    return {role.removeprefix(f"{prefix}/"): inputs[role] for role in sorted(inputs) if role.startswith(f"{prefix}/")}


def _measured(made: Made) -> dict[str, Any]:
    """Sizes, counts and times of one artifact, as its record has them."""
    record, seconds = made.record, made.seconds
    assert record is not None
    rate = record.rows / seconds if seconds and record.rows else None
    return {
        "parts": len(record.parts),
        "rows": record.rows,
        "failed": record.failed,
        "bytes": record.total_bytes,
        "seconds": seconds,
        "rows_per_second": rate,
        "summary": plain(record.summary),
    }
