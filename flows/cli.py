"""sailyard: plan | run | show | serve | verify. The only reader of the environment and the only `print`.

Exit code 0: done. 1: an error of ours, in one line with its remedy. 2: a command line or a config that means nothing.
Everything heavy is imported by the command that needs it, so that help comes at once.
"""

import json as jsons
import os
import signal
import sys
import traceback as tracebacks
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from schemas.errors import SailyardError

if TYPE_CHECKING:
    from flows.config import Project

app = typer.Typer(
    name="sailyard",
    help="Data engine and distillation orchestrator for Pixel-SAIL students.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The project's TOML file.")]
Workspace = Annotated[str | None, typer.Option(metavar="URL", help="Another workspace: a path or any fsspec URL.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as train.steps=20.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Print the whole traceback of an error.")]

# What a run needs of Prefect and Ray where the user has not said otherwise: no telemetry, and no logs on the terminal, where
# a failing flow would print its traceback three times. The logs still go to the server.
DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def main() -> None:
    app()


@contextmanager
def errors_told(traceback: bool) -> Iterator[None]:
    """Errors become one line on stderr and the exit code they ask for."""
    try:
        yield
    except typer.Exit:
        raise
    except BrokenPipeError:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # whoever read along has seen enough
        raise typer.Exit(128 + signal.SIGPIPE) from None
    except KeyboardInterrupt:
        _fail("interrupted: what is done stays done, run again to go on", 128 + signal.SIGINT)
    except SystemExit as end:
        _fail("terminated: what is done stays done, run again to go on", int(end.code or 0))
    except Exception as error:
        if traceback:
            tracebacks.print_exc()
        ours = isinstance(error, SailyardError)
        line = str(error) if ours else f"{type(error).__name__}: {error}. Run again with --traceback to see where"
        _fail(f"error: {' '.join(line.split())}", error.exit_code if ours else 1)


def _fail(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr)
    raise typer.Exit(code)


def _project(config: Path, sets: list[str] | None, workspace: str | None) -> "Project":
    from flows.config import Project
    from schemas.config import override, parse, read_toml

    data = override(read_toml(config), sets or [])
    return parse(Project, data | ({"workspace": workspace} if workspace else {}), str(config))


@app.command()
def plan(config: ConfigPath, workspace: Workspace = None, sets: Sets = None, json: Json = False, traceback: Traceback = False):
    """Show each step and its state; touches nothing."""
    with errors_told(traceback):
        from flows.plan import as_json, as_table, planned

        project = _project(config, sets, workspace)
        rows = planned(project)
        print(jsons.dumps(as_json(project, rows), indent=1) if json else as_table(rows))


@app.command()
def run(
    config: ConfigPath,
    only: Annotated[list[str] | None, typer.Option(metavar="STEP", help="Make this step alone; may be repeated.")] = None,
    sets: Sets = None,
    workspace: Workspace = None,
    rebuild: Annotated[list[str] | None, typer.Option(metavar="STEP", help="Make this step anew; may be repeated.")] = None,
    json: Json = False,
    traceback: Traceback = False,
):
    """Make everything that is missing, up to the report."""
    with errors_told(traceback):
        from flows.graph import artifacts, choose, steps_of
        from flows.results import as_table, summary
        from schemas.storage import Folder

        project = _project(config, sets, workspace)
        steps = steps_of(project)
        choose(steps, only or [], "--only")
        choose(steps, rebuild or [], "--rebuild")
        with _prefect():
            from flows.distill import start

            start(project, only, rebuild)
        found = summary(project.workspace, artifacts(steps, Folder(project.workspace)))
        print(jsons.dumps(found) if json else as_table(found))


def _prepare() -> None:
    """Prefect and Ray as a command wants them; and SIGTERM comes to an exit like any other."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@contextmanager
def _prefect() -> Iterator[None]:
    """The Prefect server that the environment or the profile names, or else a temporary one."""
    _prepare()
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if PREFECT_API_URL.value() is not None:
        yield
        return
    from flows.server import temporary_server, wait_until_ready

    with temporary_server() as url, temporary_settings({PREFECT_API_URL: url}):
        import flows.distill  # noqa: F401 - takes as long as the server, beside it

        wait_until_ready(url)
        yield


@app.command()
def show(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="Path or URL of an artifact, as runs/a/images.")],
    json: Json = False,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="Write a contact sheet here.")] = None,
    traceback: Traceback = False,
):
    """Show the record, the lineage and three rows of an artifact, or draw a contact sheet."""
    with errors_told(traceback):
        from flows import exhibit

        found = exhibit.open_artifact(artifact)
        if sheet:
            sheet.write_bytes(exhibit.sheet(found))
            print(sheet)
            return
        shown = exhibit.describe(found)
        print(jsons.dumps(shown, indent=1) if json else exhibit.as_text(shown))


@app.command()
def serve(
    config: ConfigPath,
    cron: Annotated[str | None, typer.Option(metavar="CRON", help='When to run, as "0 2 * * *"; by hand without it.')] = None,
    sets: Sets = None,
    workspace: Workspace = None,
    traceback: Traceback = False,
):
    """Make deployments of the flows and serve them until interrupted; needs a Prefect server (PREFECT_API_URL)."""
    with errors_told(traceback):
        project = _project(config, sets, workspace)
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO")
        _prepare()
        from flows.serve import serve_flows

        serve_flows(project, cron)


@app.command()
def verify(
    workspace: Annotated[str, typer.Argument(metavar="WORKSPACE", help="Path or URL of a workspace or of one artifact.")],
    json: Json = False,
    traceback: Traceback = False,
):
    """Check every digest and row count; exit code 1 if anything is wrong."""
    with errors_told(traceback):
        from flows.audit import audit

        faults: dict[str, list[str]] = {}
        for name, found in audit(workspace):
            faults[name] = found
            if not json:
                print(*(found or [f"{name}: as its record says"]), sep="\n")
        wrong = sum(map(len, faults.values()))
        if json:
            print(jsons.dumps({"workspace": workspace, "faults": faults}))
        if wrong:
            _fail(f"error: {wrong} wrong. Delete the files named and run again: what is missing is made anew", 1)


if __name__ == "__main__":
    main()
