"""What a stranger reads is true: every link leads somewhere, every file spoken of is there, every example parses. That the
commands of the README run is seen to by tests/flows/test_readme.py."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import Project
from schemas.config import parse, read_toml
from schemas.tables import markdown

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "flows" / "configs").glob("*.toml"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = "flows|schemas|stages|student|teachers|tests|benchmarks|docs"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page, without the indent that they have as parts of a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


def commands(page: Path) -> list[str]:
    return [line for block in blocks(page, "sh") for line in block.splitlines()]


TOMLS = [(page, block) for page in PAGES for block in blocks(page, "toml") if "dinov2" not in block]
LINKS = [(page, link) for page in PAGES for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text())]
PLACES = [(page, place) for page in PAGES for place in re.findall(rf"`((?:{ROOMS})/[\w/.]+)`", page.read_text())]
TESTS = [(page, test) for page in PAGES for test in re.findall(r"`(test_\w+::test_\w+)`", page.read_text())]
LINES = [(page, line) for page in PAGES for line in commands(page) if "sailyard " in line]
FILES = [(page, block) for page in PAGES for block in blocks(page, "python") if block.startswith('"""')]


def named(pairs: list[tuple[Path, str]]) -> list[str]:
    return [f"{page.relative_to(ROOT)}: {text.splitlines()[0][:60]}" for page, text in pairs]


def test_the_page_of_tables_is_what_make_docs_writes():
    assert (ROOT / "docs" / "tables.md").read_text() == markdown()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_parse(path: Path):
    assert parse(Project, read_toml(path), str(path)).name == path.stem


@pytest.mark.parametrize(("page", "block"), TOMLS, ids=named(TOMLS))
def test_configs_on_pages_parse(page: Path, block: str, tmp_path: Path):
    path = tmp_path / "own.toml"
    path.write_text(block.replace('"flows/configs/', f'"{ROOT}/flows/configs/'))
    parse(Project, read_toml(path), str(path))


@pytest.mark.parametrize(("page", "link"), LINKS, ids=named(LINKS))
def test_links_lead_somewhere(page: Path, link: str):
    assert (page.parent / link).exists()


@pytest.mark.parametrize(("page", "place"), PLACES, ids=named(PLACES))
def test_files_that_are_spoken_of_are_there(page: Path, place: str):
    assert (ROOT / place).exists()


@pytest.mark.parametrize(("page", "test"), TESTS, ids=named(TESTS))
def test_tests_that_are_named_are_there(page: Path, test: str):
    file, name = test.split("::")
    assert any(f"\ndef {name}(" in path.read_text() for path in (ROOT / "tests").rglob(f"{file}.py"))


@pytest.mark.parametrize(("page", "line"), LINES, ids=named(LINES))
def test_commands_on_pages_have_such_options(page: Path, line: str):
    words = shlex.split(line, comments=True)
    done = CliRunner().invoke(app, [*words[words.index("sailyard") + 1 :], "--help"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(("page", "block"), FILES, ids=named(FILES))
def test_files_on_pages_import_what_there_is(page: Path, block: str):
    new = set(re.findall(r"^ *(?:class )?(\w+)(?:\(Config\):| = Table\()", page.read_text(), re.MULTILINE))
    for node in ast.walk(ast.parse(block)):
        known = isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ROOMS.split("|")
        if known and "dinov2" not in node.module:  # the folder that the example makes
            assert {alias.name for alias in node.names} - new <= names_in(ROOT / node.module.replace(".", "/"))


def names_in(module: Path) -> set[str]:
    """What can be imported from a package or from a module, read off its source."""
    if module.is_dir():
        return {path.stem for path in module.glob("*.py")}
    return set(re.findall(r"^(?:class |def )?(\w+)", module.with_suffix(".py").read_text(), re.MULTILINE))
