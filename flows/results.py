"""What a finished workspace has to offer: where its artifacts lie, the metrics, the report and a picture of it."""

import json
from collections.abc import Mapping
from typing import Any

from flows.states import state_of
from flows.words import grid
from schemas.artifact import Artifact

METRICS, REPORT = "metrics.json", "report.html"


def place(artifact: Artifact, name: str = "") -> str:
    """The absolute path of a local file, the URL of any other."""
    folder = artifact.folder
    return folder.path(name) if folder.is_local else folder.child(name).url.rstrip("/")


def complete(artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
    return {name: artifact for name, artifact in artifacts.items() if state_of(artifact).kind == "done"}


def metrics_of(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The metrics of the report; empty where there is no report of today's config."""
    report = artifacts.get("report")
    if report is None or state_of(report).kind != "done":
        return {}
    return json.loads(report.folder.read(METRICS))


def picture_of(artifacts: Mapping[str, Artifact]) -> bytes:
    """A contact sheet, as PNG, of the trained student's predictions."""
    from stages.report.pictures import sheet

    return sheet(artifacts["predictions/trained"], artifacts["images"])


def summary(workspace: str, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The one JSON object that `sailyard run --json` ends with."""
    there = complete(artifacts)
    return {
        "workspace": workspace,
        "artifacts": {name: place(artifact) for name, artifact in there.items()},
        "metrics": metrics_of(artifacts),
        "report": place(there["report"], REPORT) if "report" in there else None,
    }


def as_table(found: Mapping[str, Any]) -> str:
    """The scores, and where the report lies."""
    rows = score_rows(found["metrics"])
    table = [grid([("task", "metric", "trained", "untrained"), *rows])] if rows else []
    return "\n".join([*table, *([f"report: {found['report']}"] if found["report"] else []), f"workspace: {found['workspace']}"])


def score_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """task, metric, and the scores of the trained student and of the untrained one, its floor."""
    trained, floor = metrics.get("trained", {}), metrics.get("untrained", {})
    named = [(task, name, value) for task, scores in trained.items() for name, value in scores.items()]
    return [(task, name, _number(value), _number(floor.get(task, {}).get(name))) for task, name, value in named]


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
