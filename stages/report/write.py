"""The order of the page."""

from stages.base import Progress
from stages.report.curves import curves
from stages.report.evidence import Report
from stages.report.examples import sheets
from stages.report.fidelity import fidelity
from stages.report.foretold import foretold
from stages.report.material import data, prompts, teachers
from stages.report.page import document
from stages.report.provenance import lineage
from stages.report.results import header, results

SECTIONS = (
    ("results", "Results", results),
    ("training", "Training", curves),
    ("examples", "Examples", sheets),
    ("teachers", "What the teachers see", teachers),
    ("fidelity", "What storing them costs", fidelity),
    ("prompts", "Visual prompts", prompts),
    ("data", "The data", data),
    ("foretold", "Plan and actual", foretold),
    ("lineage", "Lineage", lineage),
)


def write(report: Report, progress: Progress) -> str:
    """The report as one HTML page."""
    sections = []
    for number, (name, heading, draw) in enumerate(SECTIONS, start=1):
        sections.append((name, heading, draw(report)))
        progress(number, len(SECTIONS), "sections", heading)
    footer = "Made by Sailyard from the artifacts listed under Lineage. The numbers lie beside this page, in metrics.json."
    return document(report.title, header(report), sections, footer)
