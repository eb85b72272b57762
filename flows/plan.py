"""The DAG with the state of each step, for `sailyard plan`; nothing is made, moved or written."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flows.config import Project
from flows.graph import Step, artifacts, steps_of
from flows.results import place
from flows.states import State, state_of
from flows.words import duration, grid, size
from schemas.storage import Folder


@dataclass(frozen=True)
class Row:
    step: Step
    state: State
    path: str


def planned(project: Project) -> list[Row]:
    steps = steps_of(project)
    found = artifacts(steps, Folder(project.workspace))
    return [Row(step, state_of(found[step.name], step.inputs_in(found)), place(found[step.name])) for step in steps]


def as_json(project: Project, rows: Sequence[Row]) -> dict[str, Any]:
    steps = [
        {
            "step": row.step.name,
            **asdict(row.state),
            "path": row.path,
            "inputs": row.step.roles,
            "notes": row.step.stage.notes(),
        }
        for row in rows
    ]
    return {"name": project.name, "workspace": project.workspace, "steps": steps}


def as_table(rows: Sequence[Row]) -> str:
    return grid([("step", "state", "rows", "bytes", "time", ""), *map(_cells, rows)])


def _cells(row: Row) -> tuple[str, ...]:
    state = row.state
    counts = str(state.rows) if state.rows else "", size(state.bytes) if state.bytes else ""
    time = duration(state.seconds) if state.seconds is not None else ""
    remarks = "; ".join([*([state.reason] if state.reason else []), *row.step.stage.notes()])
    return row.step.name, _words(state), *counts, time, remarks


def _words(state: State) -> str:
    if state.kind != "partial":
        return state.kind
    return f"partial {state.done}/{state.total}" if state.total else f"partial, {state.done} files"
