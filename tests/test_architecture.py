"""The arrows of the house, read off the source: who may import whom, and where each heavy library may appear."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("schemas", "teachers", "student", "stages", "flows")
MAY_IMPORT = {
    "schemas": set(),
    "teachers": {"schemas"},
    "student": {"schemas"},
    "stages": {"schemas", "teachers", "student"},
    "flows": {"schemas", "teachers", "student", "stages"},
}
HOMES = {
    "prefect": ("flows/",),
    "typer": ("flows/cli.py",),
    "ray": ("stages/executor.py", "stages/train.py"),
    "apache_beam": ("stages/pool.py", "stages/annotations.py"),
    "torch": ("teachers/", "student/"),
    "transformers": ("teachers/sam2/", "teachers/mask2former/", "teachers/radio/"),
    "detectron2": ("teachers/mask2former/detectron.py",),
    "mask2former": ("teachers/mask2former/detectron.py",),
    "gradio": ("flows/page.py",),
    "mlflow": ("student/training/tracking.py",),
    "nltk": ("student/metrics/caption.py",),
}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Top-level names of every import of a file, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path):
    name = path.relative_to(ROOT).as_posix()
    room = name.split("/")[0]
    names = imported(path)
    assert not (names & set(ROOMS)) - MAY_IMPORT[room] - {room}
    strangers = {lib for lib, homes in HOMES.items() if lib in names and not name.startswith(homes)}
    assert not strangers, f"{name} imports {strangers} outside their rooms"
    if path.name == "config.py":
        assert "torch" not in names


def needed(name: str) -> set[str]:
    """The modules of ours that a module imports, wherever the import stands."""
    found: set[str | None] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {each for each in found if each in MODULES and each != name}


def test_no_module_needs_itself_through_others():
    TopologicalSorter({name: needed(name) for name in MODULES}).prepare()  # a CycleError names the circle


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_swallowed_errors_and_no_prints(path: Path):
    name = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})
            assert not broad or name in {"flows/cli.py", "stages/executor.py"}, f"{name}:{node.lineno}: a broad except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print" or name == "flows/cli.py", f"{name}:{node.lineno}: print"
