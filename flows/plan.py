"""The DAG with the state of each step, for `sailyard plan`; nothing is made, moved or written, unless it is asked to measure
this machine: then what it foretells is kept in the workspace, for the report to hold against what came of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flows.config import Project
from flows.graph import Step, artifacts, steps_of
from flows.results import place
from flows.reuse import Reuse, reuse_of
from flows.states import State, state_of
from flows.words import duration, grid, size
from schemas.artifact import Artifact
from schemas.storage import Folder


@dataclass(frozen=True)
class Row:
    step: Step
    state: State
    artifact: Artifact


@dataclass(frozen=True)
class Plan:
    rows: list[Row]
    reuse: Reuse | None

    @property
    def steps(self) -> list[Step]:
        return [row.step for row in self.rows]

    @property
    def found(self) -> Mapping[str, Artifact]:
        return {row.step.name: row.artifact for row in self.rows}


def planned(project: Project) -> Plan:
    steps = steps_of(project)
    found = artifacts(steps, Folder(project.workspace))
    rows = [Row(step, state_of(found[step.name], step.inputs_in(found)), found[step.name]) for step in steps]
    return Plan(rows, reuse_of(project, found))


def as_json(project: Project, plan: Plan) -> dict[str, Any]:
    steps = [
        {
            "step": row.step.name,
            **asdict(row.state),
            "path": place(row.artifact),
            "inputs": row.step.roles,
            "notes": row.step.stage.notes(),
            "beside": [each.name for each in row.step.beside],
        }
        for row in plan.rows
    ]
    reuse = {"reuse": plan.reuse.as_json()} if plan.reuse else {}
    return {"name": project.name, "workspace": project.workspace, "steps": steps, **reuse}


def as_table(plan: Plan) -> str:
    table = grid([("step", "state", "rows", "bytes", "time", ""), *map(_cells, plan.rows)])
    return "\n".join([table, *([str(plan.reuse)] if plan.reuse else [])])


def _cells(row: Row) -> tuple[str, ...]:
    state = row.state
    counts = str(state.rows) if state.rows else "", size(state.bytes) if state.bytes else ""
    time = duration(state.seconds) if state.seconds is not None else ""
    shared = [f"beside {', '.join(each.name for each in row.step.beside)}"] if row.step.beside and state.kind != "done" else []
    remarks = "; ".join([*([state.reason] if state.reason else []), *shared, *row.step.stage.notes()])
    return row.step.name, _words(state), *counts, time, remarks


def _words(state: State) -> str:
    if state.kind != "partial":
        return state.kind
    return f"partial {state.done}/{state.total}" if state.total else f"partial, {state.done} files"
