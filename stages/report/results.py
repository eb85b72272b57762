"""The header with the headline numbers, and the table of results."""

from collections.abc import Mapping
from html import escape
from typing import Any

from stages.report import plots
from stages.report.evidence import STUDENTS, Report
from stages.report.page import in_time, lead, percent, plural, table

TASKS = {
    "segmentation": "Referring segmentation",
    "reference": "Segmentation by reference",
    "caption": "Region caption",
    "choice": "Multiple choice",
    "overall": "Overall",
}
NAMES = {  # key of metrics.json -> what it is called, and what it says
    "ciou": ("cIoU", "all overlap over all union"),
    "giou": ("gIoU", "mean IoU; rightly marking nothing counts as 1"),
    "ciou_paper": ("cIoU as published", "as the authors' scripts count"),
    "giou_paper": ("gIoU as published", "as the authors' scripts count"),
    "precision": ("Precision", "IoU of a half or more where something is named"),
    "n_acc": ("N-acc", "left empty where nothing is named"),
    "t_acc": ("T-acc", "not left empty where something is named"),
    "meteor": ("METEOR", ""),
    "meteor_paper": ("METEOR as published", "prediction and reference exchanged"),
    "cider": ("CIDEr-D", "of 1000"),
    "rouge_l": ("ROUGE-L", "longest common run of words"),
    "bleu_4": ("BLEU-4", ""),
    "accuracy": ("Accuracy", "the option that was picked is the right one"),
    "accuracy_paper": ("Accuracy as published", "what is expected stands somewhere in the answer"),
    "perbench": ("PerBench", "mean of METEOR, accuracy and (cIoU + gIoU) / 2 by reference"),
    "perbench_paper": ("PerBench as published", "the mean of those as published, to hold against the paper's Table 3"),
    "perbench_by_rouge_l": ("PerBench, ROUGE-L for METEOR", "not comparable with the paper"),
}
FULL = {"cider": 10.0}  # where the best score is not 1
HEADLINES = (  # the first key of each that is there
    ("segmentation", ("ciou",)),
    ("reference", ("ciou",)),
    ("caption", ("meteor", "rouge_l")),
    ("choice", ("accuracy",)),
)


def header(report: Report) -> str:
    top = f'<p class="kicker">Sailyard report</p><h1>{escape(report.title)}</h1><p class="facts">{_facts(report)}</p>'
    return top + _banner(report) + _cards(report)


def _facts(report: Report) -> str:
    """One line: how much of everything."""
    rows = {name: made.record.rows for name, made in report.family.items() if made.record}
    facts = [plural(rows["images"], "picture")] if "images" in rows else []
    facts += [plural(rows["samples"], "dialogue")] if "samples" in rows else []
    facts += [plural(len(report.under("features")), "teacher")] if report.under("features") else []
    facts += [plural(int(report.history["step"][-1] - report.history["step"][0]) + 1, "step")] if report.history else []
    times = [made.seconds for made in report.family.values() if made.seconds is not None]
    facts += [f"{in_time(sum(times))} of work in {plural(len(times), 'artifact')}"] if times else []
    return " · ".join(facts)


def _banner(report: Report) -> str:
    """The warning that keeps numbers from being taken for what they are not."""
    if not report.random_teachers:
        return ""
    made_by_teachers = [name for name, made in report.family.items() if made.weights]
    whose = "The teachers" if report.random_teachers == made_by_teachers else "Some teachers"
    names = ", ".join(f"<code>{escape(name)}</code>" for name in report.random_teachers)
    return (
        f'<div class="banner" role="alert"><strong>{whose} of this run have random weights.</strong>'
        f"{names}: made by untrained networks. The run shows that the engine works from end to end; what was "
        "distilled knows nothing of pictures, and no number here says anything about Pixel-SAIL, SAM 2 or Mask2Former.</div>"
    )


def _cards(report: Report) -> str:
    cards = []
    for task, keys in HEADLINES:
        sides = _sides(report, task)
        key = next((key for key in keys if any(key in side for side in sides)), None)
        if key is not None:
            trained, floor = (side.get(key) for side in sides)
            beside = f"<small>untrained {percent(floor)}</small>" if floor is not None else ""
            bars = plots.bars((("trained", trained), ("untrained", floor)))
            what = f'<p class="what">{TASKS[task]}, {NAMES[key][0]}</p>'
            cards.append(f'<div class="card">{what}<p class="big">{percent(trained)}{beside}</p>{bars}</div>')
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _sides(report: Report, task: str) -> list[Mapping[str, Any]]:
    """The scores of the trained and of the untrained student."""
    return [report.metrics.get(student, {}).get(task, {}) for student in STUDENTS]


def results(report: Report) -> str:
    """Every measure of every task, trained beside untrained."""
    rows = []
    for task, name in TASKS.items():
        sides = _sides(report, task)
        keys = [key for key in NAMES if any(key in side for side in sides)]
        for number, key in enumerate(keys):
            rows.append([name + _counted(sides) if number == 0 else "", *_cells(key, *(side.get(key) for side in sides))])
    if not rows:
        return ""
    said = "In per cent, over the evaluation dialogues. Untrained is the same network with its first weights: the floor."
    heads = ["Task", "Measure", "Trained", "Untrained", "Gain", ""]
    return lead(said + _leak(report)) + table(heads, rows, numbers=(2, 3, 4))


def _counted(sides: list[Mapping[str, Any]]) -> str:
    counts = [side["count"] for side in sides if "count" in side]
    return f' <span class="soft asked">{counts[0]:,} asked</span>' if counts else ""


def _cells(key: str, trained: float | None, floor: float | None) -> list[str]:
    gain = "" if trained is None or floor is None else f"{100 * (trained - floor):+.1f}"
    title, meaning = NAMES[key]
    name = title + (f' <span class="soft meaning">{escape(meaning)}</span>' if meaning else "")
    best = f"<b>{percent(trained)}</b>"
    shares = [None if value is None else value / FULL.get(key, 1.0) for value in (trained, floor)]
    return [name, best, percent(floor), gain, plots.bars(tuple(zip(STUDENTS, shares, strict=True)))]


def _leak(report: Report) -> str:
    shared = report.metrics.get("pictures_in_both_splits")
    if shared is None:
        return ""
    return f" {shared or 'No'} evaluation picture{'s are' if shared > 1 else ' is'} also trained on."
