"""What each codec costs the student, as the certificates measured it."""

from collections.abc import Mapping
from html import escape
from typing import Any

from stages.certificate import read_certificate, worst_cosine
from stages.report import plots
from stages.report.evidence import Report
from stages.report.page import in_bytes, lead, plural, table

NUMBERS = {
    "relative_error": "Error",
    "cosine": "Cosine",
    "loss_change": "Loss",
    "gradient_cosine": "Gradient",
    "late_gradient_cosine": "Gradient, late",
}
FLOOR = 1e-7  # a loss of gradient under this is drawn as this: float32 tells no smaller ones apart


def fidelity(report: Report) -> str:
    """A table and a plot a column: bytes of a picture against the loss of gradient."""
    found = {name: read_certificate(artifact) for name, artifact in report.under("certificate").items()}
    if not found:
        return ""
    pictures = max(certificate["pictures"] for certificate in found.values())
    said = (
        f"On {plural(pictures, 'picture')} with the teacher live, through the student as it begins. Error: "
        "of the map, relative. Loss: change of the distillation loss. Gradient: cosine with the gradient of the live loss, at "
        "the start, and late, when the loss has fallen to a tenth. With a dot: what this run stored."
    )
    return lead(said) + "".join(_column(certificate, _stored(report, name)) for name, certificate in found.items())


def _stored(report: Report, column: str) -> str:
    """The codec that the column has in this run."""
    features = report.under("features").get(column)
    return features.table.spec.codec if features and features.table and features.table.spec else ""


def _column(certificate: Mapping[str, Any], own: str) -> str:
    rows = certificate["codecs"]
    dots = [
        plots.Dot(row["bytes_an_image"], max(1 - worst_cosine(row), FLOOR), row["codec"], row["codec"] == own) for row in rows
    ]
    plot = plots.scatter(dots, "bytes of a picture and loss of gradient", in_bytes)
    caption = "<b>1 − gradient cosine</b><span>over bytes a picture</span>"
    heads = ["Codec", "A picture", *NUMBERS.values()]
    cells = [[_name(row["codec"], own), in_bytes(row["bytes_an_image"]), *_figures(row)] for row in rows]
    body = table(heads, cells, numbers=range(1, len(heads)))
    figure = f'<div class="plots"><figure><figcaption>{caption}</figcaption>{plot}</figure></div>'
    return f"<h3>{escape(certificate['column'])}</h3>{body}{figure}"


def _dot(row: Mapping[str, Any], own: str) -> plots.Dot:
    return plots.Dot(row["bytes_an_image"], max(1 - worst_cosine(row), FLOOR), row["codec"], row["codec"] == own)


def _name(codec: str, own: str) -> str:
    return escape(codec) + (" ●" if codec == own else "")


def _figures(row: Mapping[str, Any]) -> list[str]:
    return [f"{row[name]:.5f}" for name in NUMBERS]
