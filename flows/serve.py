"""The deployments of the flows: runs by schedule or by hand from the Prefect UI, in a form that knows the project."""

from typing import Any

from prefect import Flow, serve
from prefect.deployments.runner import RunnerDeployment
from prefect.settings import PREFECT_API_URL
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import ParameterSchema

from flows.config import Project
from flows.distill import build_data, distill, evaluate_student, train_student
from flows.graph import steps_of
from schemas.errors import ConfigError


def deployments(project: Project, cron: str | None) -> list[RunnerDeployment]:
    """One for the whole, on the schedule, and one for each part, to be run by hand."""
    steps = steps_of(project)
    whole = _deployment(distill, project, cron, [step.name for step in steps])
    parts = (build_data, train_student, evaluate_student)
    own = [[step.name for step in steps if step.part == part.name] for part in parts]
    return [whole, *(_deployment(part, project, None, names) for part, names in zip(parts, own, strict=True))]


def _deployment(flow: Flow[..., Any], project: Project, cron: str | None, steps: list[str]) -> RunnerDeployment:
    deployment = RunnerDeployment.from_flow(
        flow,
        project.name,
        cron=cron,
        parameters={"config": project.model_dump(mode="json"), "only": [], "rebuild": []},
        tags=["sailyard", project.name],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment._parameter_openapi_schema = _form(deployment._parameter_openapi_schema, steps)
    return deployment


def _form(schema: ParameterSchema, steps: list[str]) -> ParameterSchema:
    """The form of a run: first the steps to choose from, by name, then the long config. Prefect itself writes choices into
    this schema where a deployment freezes parameters; it has no other place for them."""
    choice = {"type": "array", "items": {"type": "string", "enum": steps}, "uniqueItems": True, "default": []}
    only = {"title": "only", "description": "Make these steps alone, from complete inputs.", "position": 0}
    rebuild = {"title": "rebuild", "description": "Make these steps anew, and what follows from them.", "position": 1}
    config = schema.properties["config"] | {"position": 2}
    return schema.model_copy(update={"properties": {"only": only | choice, "rebuild": rebuild | choice, "config": config}})


def serve_flows(project: Project, cron: str | None) -> None:
    """Serve until interrupted; a flow run that is cancelled gets SIGTERM in its own process."""
    if PREFECT_API_URL.value() is None:
        remedy = "Start one with `prefect server start` and set PREFECT_API_URL=http://127.0.0.1:4200/api."
        raise ConfigError("serving needs a Prefect server, and none is named", "PREFECT_API_URL", remedy)
    serve(*deployments(project, cron))
