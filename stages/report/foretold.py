"""What `sailyard plan --probe` foretold of the run, beside what the records say it took."""

from html import escape

from schemas.storage import Folder
from stages.forecast import Comparison, Range, compared, read_plan
from stages.report.evidence import Report
from stages.report.page import in_bytes, in_time, lead, table

WRITTEN = {"bytes": in_bytes, "seconds": in_time, "rows": "{:,.0f}".format}


def foretold(report: Report) -> str:
    """A row for each number that was foretold of a step that is complete."""
    if report.images is None:
        return ""
    workspace = Folder(report.images.folder.url.removesuffix(report.images.name).rstrip("/"))
    found = compared(read_plan(workspace), report.inputs)
    if not found:
        return ""
    held = sum(each.held for each in found)
    said = f"{held} of {len(found)} numbers lie within what `sailyard plan --probe` had foretold on this machine."
    return lead(said) + table(["Step", "What", "Foretold", "Between", "Actual", ""], [_row(each) for each in found], (2, 4))


def _row(each: Comparison) -> list[str]:
    write = WRITTEN[each.what]
    verdict = '<b class="good">held</b>' if each.held else '<b class="bad">not held</b>'
    step = f"<code>{escape(each.step)}</code>"
    return [step, each.what, write(each.foretold.likely), _between(each.foretold, each.what), write(each.actual), verdict]


def _between(foretold: Range, what: str) -> str:
    return f"{WRITTEN[what](foretold.low)} to {WRITTEN[what](foretold.high)}"
