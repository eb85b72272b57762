"""The page, in a real Chromium: a picture is opened, marked by hand and asked about, and the answer comes with its mask."""

import importlib.util
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import Project
from flows.page import name_of
from flows.predict import Machine
from stages.sources.shapes.config import ShapesConfig
from tests.flows.asked import HEIGHT, POINT, QUESTION, STEPS, WIDTH, write_project
from tests.flows.small import COMMAND, ROOT


@pytest.mark.skipif(importlib.util.find_spec("gradio") is not None, reason="gradio is installed")
@pytest.mark.parametrize("named", [["any.toml"], ["--checkpoint", "runs/train/step-00000007"]])
def test_without_gradio_the_page_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: list[str]):
    monkeypatch.chdir(tmp_path)
    Path("any.toml").write_text('name = "any"\nworkspace = "runs"\nsource.kind = "shapes"\n')
    done = CliRunner().invoke(app, ["predict", *named, "--serve"])
    assert done.exit_code == 1
    assert done.stderr.splitlines() == ["error: --serve: the page needs gradio. Install it: pip install 'sailyard[page]'."]


@pytest.mark.parametrize(
    ("folder", "step", "name"),
    [
        ("runs/quickstart/train/step-00000400", 400, "quickstart"),
        ("s3://bucket/runs/small/train/step-00000400/", 400, "small"),
        ("exported/small-400", None, "small-400"),
    ],
)
def test_the_page_goes_by_the_project_or_else_by_what_its_folder_is_called(folder: str, step: int | None, name: str):
    project = Project(name="ours", workspace="runs/theirs", source=ShapesConfig(kind="shapes"))
    told = {"folder": folder, "step": step}
    assert (name_of(Machine(), told), name_of(project, told)) == (name, "ours")


@pytest.mark.page
def test_a_folder_that_says_what_it_is_has_a_page_without_a_config(tmp_path: Path):
    write_project(tmp_path)
    checkpoint = tmp_path / "runs" / "train" / f"step-{STEPS:08d}"
    with serving(tmp_path, "--checkpoint", checkpoint) as url, urlopen(url) as page:
        assert '"title":"runs · Sailyard"' in page.read().decode()


@contextmanager
def serving(folder: Path, *arguments: Path | str) -> Iterator[str]:
    """The URL of the page, which the command serves in a process of its own."""
    command = [*COMMAND, "predict", *map(str, arguments), "--serve", "--max-new-tokens", "16"]
    told = folder / "told.txt"
    with told.open("w") as log, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""
            assert line.startswith("ask at http://127.0.0.1:"), told.read_text()
            yield line.split()[2]
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of the page, and the picture that its student knows."""
    folder = tmp_path_factory.mktemp("page")
    with serving(folder, write_project(folder)) as url:
        yield url, folder / "scene.png"


@pytest.fixture
def page(address: tuple[str, Path]):
    """The page with the picture open; an error of its scripts fails the test."""
    from playwright.sync_api import sync_playwright

    url, scene = address
    faults: list[str] = []
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        view = browser.new_page(viewport={"width": 1280, "height": 900})
        view.on("pageerror", lambda error: faults.append(str(error)))
        view.goto(url)
        view.locator("input[type=file]").first.set_input_files(scene)
        view.locator("#pointing canvas").wait_for()
        yield view
        browser.close()
    assert not faults


def ask(page, question: str) -> None:
    page.locator("#question textarea").fill(question)
    page.locator("#ask").click()


def on_canvas(page, x: float, y: float) -> tuple[float, float]:
    """Where the middle of a pixel of the picture is on the screen."""
    box = page.locator("#pointing canvas").bounding_box()
    return box["x"] + (x + 0.5) * box["width"] / WIDTH, box["y"] + (y + 0.5) * box["height"] / HEIGHT


def drag(page, *corners: tuple[float, float]) -> None:
    first, *rest = (on_canvas(page, *corner) for corner in corners)
    page.mouse.move(*first)
    page.mouse.down()
    for corner in rest:
        page.mouse.move(*corner, steps=4)
    page.mouse.up()


@pytest.mark.page
def test_a_click_is_asked_about_and_answered(page, tmp_path: Path):
    page.mouse.click(*on_canvas(page, *POINT))
    ask(page, QUESTION)
    page.locator("#words .said", has_text="It is SEG 0.").wait_for()
    cells = page.locator("#words td").all_inner_texts()
    assert cells[0] == "SEG 0"
    assert cells[3:] == ["4, 8, 28, 32", "1.00"]
    page.locator("#shown img").wait_for()
    page.screenshot(path=tmp_path / "page.png")


@pytest.mark.page
@pytest.mark.parametrize(
    ("tool", "corners"),
    [
        ("Box", [(4, 8), (27, 31)]),
        ("Scribble", [(8, 12), (20, 20), (24, 28)]),
        ("Outline", [(4, 8), (28, 8), (28, 31), (4, 31)]),
    ],
)
def test_a_region_is_drawn_by_hand(page, tool: str, corners: list[tuple[float, float]]):
    page.get_by_role("button", name=tool).click()
    drag(page, *corners)
    ask(page, QUESTION)
    page.locator("#words .said", has_text="SEG 0").wait_for()


@pytest.mark.page
def test_what_means_nothing_is_told_on_the_page(page):
    page.mouse.click(*on_canvas(page, *POINT))
    ask(page, "What is this?")
    page.get_by_text("it mentions none of the marks (<Prompt0>)").wait_for()
    page.get_by_role("button", name="Undo").click()
    ask(page, QUESTION)
    page.get_by_text("it speaks of <Prompt0>, the marks are none").wait_for()
