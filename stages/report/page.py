"""The page around the sections, and the few forms of HTML that they share. The page stands alone: no script, no link out."""

import itertools
import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from stages.report.drawing import data_uri


def document(title: str, header: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """The whole page; a section is (id, heading, its HTML), and one that has nothing to show is left out."""
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in shown)
    body = "".join(f'<section id="{name}"><h2>{escape(heading)}</h2>{html}</section>\n' for name, heading, html in shown)
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>{header}</header>\n<nav>{links}</nav>\n{body}<footer>{footer}</footer>\n</body>\n</html>\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of HTML cells; the columns `numbers` are set flush right. The first cell of a row is its heading, which where
    it is empty is that of the row above."""
    kind = lambda column: ' class="num"' if column in numbers else ""  # noqa: E731
    head = "".join(f"<th{kind(n)}>{escape(text)}</th>" for n, text in enumerate(heads))
    lines = []
    for number, row in enumerate(rows):
        same = sum(1 for _ in itertools.takewhile(lambda other: not other[0], rows[number + 1 :]))
        span = f' rowspan="{same + 1}"' if same else ""
        heading = f"<th{span}>{row[0]}</th>" if row[0] else ""
        cells = "".join(f"<td{kind(n)}>{cell}</td>" for n, cell in enumerate(row[1:], start=1))
        lines.append(f"<tr>{heading}{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def figure(picture: Image.Image, alt: str, caption: str, kind: str = "") -> str:
    """A picture with HTML below it, or beside it where `kind` is "beside"."""
    image = f'<div><img src="{data_uri(picture)}" alt="{escape(alt)}"></div>' if kind else img(picture, alt)
    return f'<figure class="{f"example {kind}".strip()}">{image}<figcaption>{caption}</figcaption></figure>'


def img(picture: Image.Image, alt: str) -> str:
    return f'<img src="{data_uri(picture)}" alt="{escape(alt)}">'


def lead(text: str) -> str:
    """The sentence under a heading that says what is to be seen."""
    return f'<p class="lead">{text}</p>'


def details(summary: str, html: str, name: str = "") -> str:
    """Folded away until it is asked for."""
    anchor = f' id="{name}"' if name else ""
    return f"<details{anchor}><summary>{summary}</summary>{html}</details>"


def listed(lines: Sequence[str], most: int = 200) -> str:
    more = f"<li>… and {len(lines) - most:,} more</li>" if len(lines) > most else ""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines[:most])}{more}</ul>"


def as_json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"


def said(text: str) -> str:
    """A question or an answer as HTML, its tokens set off from its words."""
    marked = re.sub(r"(&lt;Prompt\d+&gt;)", r'<span class="token prompt">\1</span>', escape(text))
    return marked.replace("[SEG]", '<span class="token seg">[SEG]</span>') or "<i>nothing</i>"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def in_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"


def in_time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02d} min"
