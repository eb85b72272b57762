"""The curves of the training run, and whether the distillation losses fell."""

from html import escape

import numpy as np

from stages.report import plots
from stages.report.evidence import Report
from stages.report.page import lead, percent, table

LOSSES = {
    "total": "Total loss",
    "lm": "Text",
    "mask": "Mask, cross-entropy",
    "dice": "Mask, dice",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
}
LAST = ("grad_norm", "lr")


def curves(report: Report) -> str:
    """One small plot a column of metrics.jsonl, the distillation losses against half of their start."""
    history = report.history
    columns = [name for name in history if name.startswith("distill/")]
    names = [*(name for name in LOSSES if name in history and name not in LAST), *columns, *(n for n in LAST if n in history)]
    panels = [_panel(report, name) for name in names if np.isfinite(history[name]).any()]
    if not panels:
        return ""
    said = (
        "Faint: each logged step. Strong: the running mean over a twenty-fifth of the run. The scale is logarithmic where the "
        "curve spans more than a factor of eight."
    )
    return lead(said) + f'<div class="plots">{"".join(panels)}</div>' + _falls(report)


def _panel(report: Report, name: str) -> str:
    steps, values = report.history["step"], report.history[name]
    fall = report.metrics["distillation"].get(name.removeprefix("distill/"), {}) if name.startswith("distill/") else {}
    level = plots.Level(fall["start"] / 2, "half of the start") if fall else None
    title = LOSSES.get(name) or f"Distillation, {name.removeprefix('distill/')}"
    known = values[np.isfinite(values)]
    ends = plots.smoothed(known)[[0, -1]]
    caption = f"<b>{escape(title)}</b><span>{plots.short(ends[0])} → {plots.short(ends[1])}</span>"
    return f"<figure><figcaption>{caption}</figcaption>{plots.curve(steps, values, level, title)}</figure>"


def _falls(report: Report) -> str:
    """Whether each distillation loss fell under half of its start, in numbers and, where it did not, in words."""
    rows, reasons = [], []
    for teacher, fall in report.metrics["distillation"].items():
        if not fall:
            continue
        verdict = '<b class="good">under half</b>' if fall["halved"] else '<b class="bad">not under half</b>'
        share = 1 - fall["end"] / fall["channel_mean_loss"] if fall["channel_mean_loss"] else None
        numbers = [plots.short(fall["start"]), plots.short(fall["end"]), percent(fall["ratio"]) + " %"]
        mean = ["–", "–"]
        if share is not None:
            mean = [plots.short(fall["channel_mean_loss"]), percent(share) + " %" if share > 0 else "none"]
        rows.append([f"<b>{escape(teacher)}</b>", *numbers, verdict, *mean])
        reasons += [f"<p><b>{escape(teacher)}.</b> {escape(fall['reason'])}</p>"] if "reason" in fall else []
    if not rows:
        return ""
    heads = ["Teacher", "First 20 steps", "Last 20 steps", "Last of first", "Verdict", "Loss of channel means", "Explained"]
    said = (
        "The loss of channel means is what a student would lose that writes each channel's mean and sees nothing of the "
        "picture: the teacher's variance, on the stored grid, times the loss weight. Explained: how far below it the end lies."
    )
    reason = f'<div class="soft reasons">{"".join(reasons)}</div>' if reasons else ""
    return "<h3>Did the distillation losses fall?</h3>" + lead(said) + table(heads, rows, numbers=(1, 2, 3, 5, 6)) + reason
