"""The last section: what made the numbers, in words, as a drawing, and artifact by artifact."""

from collections.abc import Mapping
from html import escape

from stages.report.evidence import Report
from stages.report.graph import Node, anchor, dag
from stages.report.lineage import Made
from stages.report.page import as_json, details, in_bytes, in_time, lead, plural


def lineage(report: Report) -> str:
    """Words first, then the drawing, then everything there is to know of each artifact."""
    names = ", ".join(f"<code>{escape(name)}</code>" for name in report.inputs)
    said = (
        "Each box is an artifact with the first digits of its fingerprint, a digest of all that its bytes depend on. An arrow "
        f"that a longer way implies is left out; this report itself was made from {names}."
    )
    drawing = f'<div class="dag-frame">{dag([_node(made) for made in report.family.values()])}</div>'
    return f"<h3>What made these numbers</h3>{_words(report)}{lead(said)}{drawing}" + "".join(
        map(_sheet, report.family.values())
    )


def _node(made: Made) -> Node:
    kind = "absent" if made.record is None else "random" if made.has_random_teacher else "model" if made.name == "train" else ""
    return Node(made.name, made.fingerprint[:12], made.inputs, kind)


def _words(report: Report) -> str:
    """Which images, teachers, weights, config and code made the numbers."""
    found = report.family
    lines = {
        "Numbers": _numbers(report),
        "Images": _images(found),
        "Teachers": _teachers(found),
        "Student": _student(report),
        "Code": _code(found),
    }
    return '<dl class="made">' + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in lines.items() if text) + "</dl>"


def _numbers(report: Report) -> str:
    parts = []
    for name, rows in report.predictions.items():
        pictures = len({row.spot for row in rows})
        made = _link(report.family.get(f"predictions/{name}"), f"predictions/{name}")
        parts.append(
            f"{plural(len(rows), 'answer')} about {plural(pictures, 'picture')} by the {escape(name)} student ({made})"
        )
    return "; ".join(parts)


def _images(found: Mapping[str, Made]) -> str:
    images = found.get("images")
    if images is None or images.record is None:
        return ""
    held = f"{plural(images.record.rows, 'picture')} in {_link(images)}"
    origin = f", from {_link(found['source'])}" if "source" in found else ""
    return held + origin


def _teachers(found: Mapping[str, Made]) -> str:
    lines = []
    for made in found.values():
        if made.weights:
            random = ' <b class="bad">random</b>' if made.has_random_teacher else f" <code>{escape(made.weights)}</code>"
            outside = (made.record.identity.get("outside") or {}) if made.record else {}
            digests = "".join(f", {escape(name)} <code>{escape(str(text)[:16])}</code>" for name, text in outside.items())
            lines.append(f"{_link(made)}: weights{random}{digests}")
    return "<br>".join(lines)


def _student(report: Report) -> str:
    train = report.family.get("train")
    if train is None or train.record is None:
        return ""
    made_from = ", ".join(f"<code>{escape(name)}</code>" for name in train.inputs)
    steps = len(report.history.get("step", ()))
    took = f", {plural(steps, 'step')} in {in_time(train.seconds)}" if train.seconds is not None and steps else ""
    pace = f", {in_time(train.seconds / steps)} a step" if took and train.seconds else ""
    return f"{_link(train)}, trained on {made_from} under the config that is folded below{took}{pace}"


def _code(found: Mapping[str, Made]) -> str:
    records = [made.record for made in found.values() if made.record]
    codes = dict.fromkeys(record.code for record in records)
    packages = dict(sorted({item for record in records for item in record.packages.items()}))
    parts = " and ".join(f"<code>{escape(code)}</code>" for code in codes)
    return parts + (", with " + ", ".join(f"{escape(k)} {escape(v)}" for k, v in packages.items()) if packages else "")


def _link(made: Made | None, name: str = "") -> str:
    if made is None:
        return f"<code>{escape(name)}</code>"
    return f'<a href="#{anchor(made.name)}"><code>{escape(made.name)} {made.fingerprint[:12]}</code></a>'


def _sheet(made: Made) -> str:
    """All that its record says, folded away under its name and fingerprint."""
    head = f"<b>{escape(made.name)}</b> <code>{made.fingerprint}</code>"
    if made.record is None:
        return details(head, '<p class="soft">Only its fingerprint is known here.</p>', anchor(made.name))
    record = made.record
    inputs = "".join(
        f'<br>{escape(role)}: <a href="#{anchor(i["name"])}"><code>{escape(i["name"])} {i["fingerprint"][:12]}</code></a>'
        for role, i in record.inputs.items()
    )
    size = f"{plural(len(record.parts), 'file')}, {plural(record.rows, 'row')}, {in_bytes(record.total_bytes)}"
    times = f"{escape(record.started)} to {escape(record.ended)}"
    text = f"<p>{size}<br>made {times} by code <code>{escape(record.code)}</code>{inputs}</p>"
    said = {"identity": record.identity, "summary": record.summary, "packages": record.packages}
    return details(head, text + as_json({k: v for k, v in said.items() if v}), anchor(made.name))
