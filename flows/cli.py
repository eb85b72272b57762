"""sailyard: plan | run | show | predict | export | import | serve | budget | ledger | retry | waive | verify. The only
reader of the environment and the only `print`.

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
from enum import StrEnum
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
OneStep = Annotated[str | None, typer.Option("--step", metavar="STEP", help="Only this step, or this group of steps.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Print the whole traceback of an error.")]


Kind = StrEnum("Kind", {"data": "data", "capacity": "capacity", "code": "code"})  # of failed rows

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
def plan(
    config: ConfigPath,
    probe: Annotated[
        int | None, typer.Option(metavar="PICTURES", min=1, help="Measure this machine on so many, and foretell the run.")
    ] = None,
    probe_bytes: Annotated[str, typer.Option(metavar="BYTES", help="Most that the probe writes to the workspace.")] = "4GiB",
    workspace: Workspace = None,
    sets: Sets = None,
    json: Json = False,
    traceback: Traceback = False,
):
    """Show each step and its state; touches nothing, but that a probe leaves what it foretells as plan.json."""
    with errors_told(traceback):
        from flows.plan import as_json, as_table, planned

        project = _project(config, sets, workspace)
        found = planned(project)
        shown, text = as_json(project, found), as_table(found)
        if probe:
            from flows.budget import parse_bytes
            from flows.prospect import look_ahead

            foretold, told = look_ahead(project, found, project.prices, probe, parse_bytes(probe_bytes))
            shown, text = shown | {"foretold": foretold}, f"{text}\n\n{told}"
        print(jsons.dumps(shown, indent=1) if json else text)


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
        from flows.worker import group
        from schemas.storage import Folder

        project = _project(config, sets, workspace)
        steps = steps_of(project)
        choose(steps, only or [], "--only")
        choose(steps, rebuild or [], "--rebuild")
        _prepare()
        with group(project, only or [], rebuild or [], os.environ) as mine:
            if mine is None:
                return
            with _prefect():
                from flows.distill import start

                start(mine, only, rebuild)
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
def budget(
    config: ConfigPath,
    max_bytes: Annotated[str, typer.Option(metavar="BYTES", help="What all features may take, as 500GB or 4TiB.")],
    sets: Sets = None,
    workspace: Workspace = None,
    json: Json = False,
    traceback: Traceback = False,
):
    """Choose a codec for each teacher, so that the features fit at the least loss; makes the certificates it needs first."""
    with errors_told(traceback):
        from flows import budget as budgets

        project, most = _project(config, sets, workspace), budgets.parse_bytes(max_bytes)
        with _prefect():
            from flows.distill import start

            start(project, budgets.needed(project), None)
        drawn = budgets.draw_up(project, most)
        print(jsons.dumps(budgets.as_json(drawn), indent=1) if json else budgets.as_table(drawn))


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
def predict(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="The TOML file; or --checkpoint FOLDER.")] = None,
    image: Annotated[str, typer.Option(metavar="PATH", help="The picture: a path or any fsspec URL.")] = "",
    text: Annotated[str, typer.Option(metavar="TEXT", help="The question; <Prompt0> in it means the first mark.")] = "",
    point: Annotated[list[str] | None, typer.Option(metavar="X,Y", help="Point at a pixel; repeat for more.")] = None,
    box: Annotated[list[str] | None, typer.Option(metavar="X0,Y0,X1,Y1", help="Point with a box; repeat for more.")] = None,
    scribble: Annotated[list[str] | None, typer.Option(metavar="X,Y,X,Y,...", help="Point with a stroke; repeat.")] = None,
    mask: Annotated[list[str] | None, typer.Option(metavar="PATH", help="With a mask, white on black; repeat.")] = None,
    checkpoint: Annotated[str | None, typer.Option(metavar="STEP", help="A step or a folder; else the newest.")] = None,
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Where NAME.png and NAME.json go.")] = "answers",
    max_new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="The longest answer.")] = 512,
    temperature: Annotated[float, typer.Option(metavar="T", min=0, help="0: the likeliest token each time.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="What tokens are drawn from at a temperature.")] = 0,
    serve: Annotated[bool, typer.Option("--serve", help="Open a page instead, on which to point and ask.")] = False,
    port: Annotated[int | None, typer.Option(metavar="PORT", min=1, help="Of the page; else the first free from 7860.")] = None,
    workspace: Workspace = None,
    sets: Sets = None,
    json: Json = False,
    traceback: Traceback = False,
):
    """Ask the student about a picture, pointing by points, boxes, scribbles and masks; it answers in words and masks."""
    with errors_told(traceback):
        from flows import answers
        from flows import predict as predicting

        project = _project(config, sets, workspace) if config else predicting.machine(checkpoint, sets or [], workspace)
        writing = answers.Writing(max_new_tokens, temperature, seed)
        marks = (tuple(each or ()) for each in (point, box, scribble, mask))
        question = predicting.Question(image, text, *marks)
        predicting.check(question, serve)
        if serve:
            from flows.page import served

            with served(project, checkpoint, writing, port) as url:
                print(f"ask at {url} (Ctrl-C ends it)", flush=True)
                signal.pause()
            return
        answered = predicting.ask(project, checkpoint, question, writing)
        paths = answers.save(answered, out)
        print(jsons.dumps(answers.as_json(answered), indent=1) if json else answers.as_text(answered))
        print(*paths, sep="\n", file=sys.stderr if json else sys.stdout)


@app.command()
def export(
    config: ConfigPath,
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="Where it goes: a path or any fsspec URL.")],
    workspace: Workspace = None,
    sets: Sets = None,
    json: Json = False,
    traceback: Traceback = False,
):
    """Write the newest student of the run as a Hugging Face model folder: weights, tokenizer, config and model card."""
    with errors_told(traceback):
        from flows import export as exporting

        exported = exporting.export(_project(config, sets, workspace), to)
        print(jsons.dumps(vars(exported), indent=1) if json else exported.as_text())


@app.command("import")
def import_(
    config: ConfigPath,
    source: Annotated[str, typer.Option("--from", metavar="PATH", help="The checkpoint: a .pth, .safetensors or folder.")],
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="Where it goes: a path or any fsspec URL.")],
    workspace: Workspace = None,
    sets: Sets = None,
    json: Json = False,
    traceback: Traceback = False,
):
    """Convert a checkpoint in the layout of the Pixel-SAIL release to a model folder, which [base] can start from."""
    with errors_told(traceback):
        from flows import export as exporting

        brought = exporting.bring_in(_project(config, sets, workspace), source, to)
        print(jsons.dumps(vars(brought), indent=1) if json else brought.as_text())


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
def ledger(
    config: ConfigPath, workspace: Workspace = None, sets: Sets = None, json: Json = False, traceback: Traceback = False
):
    """List every failed row: where it is, its class, how often it was tried, and what went wrong."""
    with errors_told(traceback):
        from flows.ledger import Ledger, as_table

        entries = list(Ledger.of(_project(config, sets, workspace)).entries())
        print(jsons.dumps([vars(entry) for entry in entries], indent=1) if json else as_table(entries))


@app.command()
def retry(
    config: ConfigPath,
    kind: Annotated[Kind, typer.Option("--class", help="The class of failures to try again.")],
    step: OneStep = None,
    workspace: Workspace = None,
    sets: Sets = None,
    traceback: Traceback = False,
):
    """Try exactly the failed rows of a class again; nothing else is made."""
    with errors_told(traceback):
        _prepare()
        from flows.ledger import Ledger

        tried = list(Ledger.of(_project(config, sets, workspace), step).retry(kind.value))
        print(*(tried or [f"no row of class {kind.value} has failed in a step that is made row by row"]), sep="\n")


@app.command()
def waive(
    config: ConfigPath,
    step: Annotated[str, typer.Option(metavar="STEP", help="The step whose rows may fail.")],
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why they may; it stands in the record.")],
    kind: Annotated[Kind | None, typer.Option("--class", help="Only failures of this class.")] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Only the row of this picture.")] = None,
    workspace: Workspace = None,
    sets: Sets = None,
    traceback: Traceback = False,
):
    """Let failed rows stay failed: they are listed, and no longer count against max_error_rate."""
    with errors_told(traceback):
        _prepare()
        from flows.ledger import Ledger

        waived = Ledger.of(_project(config, sets, workspace), step).waive(why, kind.value if kind else None, key)
        print(f"{len(waived)} more rows waived")


@app.command()
def verify(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A workspace, an artifact, or the project's TOML file.")],
    heal: Annotated[bool, typer.Option("--heal", help="Make anew what is damaged, and nothing else; needs the TOML.")] = False,
    audit: Annotated[int, typer.Option(metavar="N", min=0, help="Make N rows of each teacher again, and compare.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Which rows --audit draws.")] = 0,
    workspace: Workspace = None,
    sets: Sets = None,
    json: Json = False,
    traceback: Traceback = False,
):
    """Check every digest, row count and stored feature; exit code 1 if anything is wrong."""
    with errors_told(traceback):
        from flows.audit import Check

        _prepare()
        check = Check.of(_project(Path(target), sets, workspace)) if target.endswith(".toml") else Check(target)
        for line in check.lines(mend=heal, again=audit, seed=seed):
            if not json:
                print(line)
        if json:
            print(jsons.dumps(check.as_json()))
        if check.wrong:
            remedy = "Delete the files named, or heal with `sailyard verify CONFIG --heal`, and run again"
            _fail(f"error: {check.wrong} wrong. {remedy}", 1)


if __name__ == "__main__":
    main()
