"""The page of `sailyard predict --serve`: open a picture, point at it by hand, ask, and see what the student answers.

The picture and its marks live in one canvas (page.js, page.css), whose value is the picture as a `data:` URI, its own size
and the marks drawn so far, in pixels of the picture. Everything that is asked and drawn is what the command line does.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from flows.answers import SHOWN_SIDES, Asked, Writing, colour_of, picture, readable
from flows.config import Project
from flows.pointing import drawn
from flows.predict import Machine, Opened, open_student, read_picture
from schemas.dialogue import SEG
from schemas.errors import ConfigError, MissingLibrary, SailyardError
from schemas.storage import Folder
from stages.phrases import DETAIL, SEGMENT
from stages.report import drawing

if TYPE_CHECKING:
    from student.ask import Answer

CANVAS = """
<div class="tools">
  <button data-tool="point" class="on">Point</button><button data-tool="box">Box</button>
  <button data-tool="scribble">Scribble</button><button data-tool="mask">Outline</button>
  <span></span><button data-do="undo">Undo</button><button data-do="clear">Clear</button>
</div>
<div class="stage"><canvas></canvas><p>Open a picture. Then click, drag a box, scribble or outline what you mean.</p></div>
"""
NOTHING_YET = '<p class="soft">The answer comes here.</p>'
THUMB = 96


def library() -> Any:
    """gradio; MissingLibrary where it is not installed."""
    try:
        import gradio  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingLibrary("the page needs gradio", "--serve", "Install it: pip install 'sailyard[page]'.") from None
    return gradio


@contextmanager
def served(project: Project | Machine, checkpoint: str | None, writing: Writing, port: int | None) -> Iterator[str]:
    """The page on this machine for the length of the block, at the URL that it hands out; without a port, at the first that
    is free from 7860 on."""
    gr = library()
    opened = open_student(project, checkpoint)
    page = built(gr, opened, writing, name_of(project, opened.checkpoint))
    theme = gr.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        _, url, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            footer_links=[],
            theme=theme,
            css=_beside("page.css"),
        )
    except OSError as error:
        raise ConfigError(str(error).split(".")[0], f"--port {port}", "Name another, or leave it out.") from None
    try:
        yield url
    finally:
        page.close(verbose=False)


def name_of(project: Project | Machine, checkpoint: Mapping[str, Any]) -> str:
    """Whom the page asks: the project; without one the exported folder, or the workspace that the step lies in."""
    if isinstance(project, Project):
        return project.name
    names = [name for name in Folder(checkpoint["folder"]).path().split("/") if name]
    return names[-1] if checkpoint["step"] is None else names[-3:][0]


def built(gr: Any, opened: Opened, writing: Writing, name: str) -> Any:
    """The page as gradio's blocks, wired but not served."""
    step, folder = opened.checkpoint["step"], opened.checkpoint["folder"]
    whose = folder if step is None else f"Checkpoint of step {step}"
    with gr.Blocks(title=f"{name} · Sailyard", analytics_enabled=False, fill_width=False) as page:
        pixels = gr.State(None, time_to_live=3600)
        gr.HTML(f"<h1>Ask {escape(name)}</h1><p class='soft'>{escape(whose)}</p>", elem_id="head")
        with gr.Row():
            with gr.Column(scale=5, min_width=360):
                opener = gr.UploadButton("Open a picture", file_types=["image"], elem_id="open")
                canvas = gr.HTML(
                    None, html_template=CANVAS, js_on_load=_beside("page.js"), apply_default_css=False, elem_id="pointing"
                )
                text = gr.Textbox(label="Question", placeholder="<Prompt0> means the first mark", lines=2, elem_id="question")
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
                gr.Examples([SEGMENT[0].format("the red circle"), DETAIL[0].format("<Prompt0>")], text, label="For example")
            with gr.Column(scale=5, min_width=360):
                buttons = ["download", "fullscreen"]
                shown = gr.Image(label="Answer", interactive=False, format="png", buttons=buttons, elem_id="shown")
                words = gr.HTML(NOTHING_YET, elem_id="words")

        def show(path: str) -> tuple[Any, np.ndarray, None, str]:
            with _told(gr):
                found = read_picture(path)
            return on_canvas(found), found, None, NOTHING_YET

        def answer(value: Any, question: str, found: np.ndarray | None) -> tuple[Image.Image, str]:
            with _told(gr):
                answered = opened.ask(asked(value, question, found), writing)
            return picture(answered), as_html(answered.answer)

        quiet = {"api_visibility": "private", "show_progress_on": shown}
        opener.upload(show, opener, [canvas, pixels, shown, words], **quiet)
        gr.on([ask.click, text.submit], answer, [canvas, text, pixels], [shown, words], **quiet)
    return page


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@contextmanager
def _told(gr: Any) -> Iterator[None]:
    """What goes wrong is one line on the page, as it is on the terminal."""
    try:
        yield
    except SailyardError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from None  # it is shown as HTML


def on_canvas(pixels_HWC: np.ndarray) -> dict[str, Any]:
    """The canvas's value for a picture without marks; it is shown no larger than need be."""
    shown, (_, most) = Image.fromarray(pixels_HWC), SHOWN_SIDES
    uri = drawing.data_uri(drawing.fitted(shown, most) if max(shown.size) > most else shown, quality=90)
    return {"picture": uri, "width": shown.width, "height": shown.height, "marks": []}


def asked(value: Any, text: str, pixels_HWC: np.ndarray | None) -> Asked:
    """What is asked, by the canvas's value and the picture that it shows."""
    if pixels_HWC is None:
        raise ConfigError("there is no picture", "the page", "Open one first.")
    size = pixels_HWC.shape[:2]
    prompts = [drawn(number, mark["kind"], mark["xy"], size) for number, mark in enumerate(value["marks"])]
    return Asked("page", pixels_HWC, text, prompts)


def as_html(answer: "Answer") -> str:
    """The words, each [SEG] in the colour of its mask, and a row for each mask."""
    first, *rest = escape(readable(answer.text)).split(SEG)
    said = first + "".join(f"{_chip(number)}{piece}" for number, piece in enumerate(rest))
    rows = []
    for number, (rle, score) in enumerate(zip(answer.masks, answer.scores, strict=True)):
        thumb = drawing.data_uri(drawing.fitted(Image.fromarray(rle.mask()).convert("RGB"), THUMB))
        box = ", ".join(f"{value:g}" for value in rle.box)
        cells = (_chip(number), f'<img src="{thumb}" alt="mask {number}">', f"{rle.area:,} px", box, f"{score:.2f}")
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "<tr><th></th><th>mask</th><th>area</th><th>box</th><th>score</th></tr>"
    return f'<p class="said">{said}</p>' + (f"<table>{head}{''.join(rows)}</table>" if rows else "")


def _chip(number: int) -> str:
    return f'<b class="chip" style="background: rgb{colour_of(number)}">SEG {number}</b>'
