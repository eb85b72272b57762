"""From rows of PREDICTIONS to scores: which mask is held against which, which words against which. The arithmetic is the
student's own, in `student.metrics`; every score is given in 0 … 1, CIDEr in 0 … 10.

A name that ends in `_paper` is of a score counted as the authors' scripts count, with their defects (docs/paper.md): to be held
against the paper's tables, and against no other score here.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from schemas.regions import VOID, Rle, valued
from stages.report.reading import Prediction
from student.metrics.caption import caption_scores, meteor, paper_meteor
from student.metrics.choice import choice_scores, is_right
from student.metrics.perbench import overall
from student.metrics.segmentation import Overlap, overlap, paper_reference_scores, segmentation_scores

Scores = dict[str, dict[str, float]]


def of(predictions: Sequence[Prediction], with_meteor: bool = False) -> Scores:
    """Task -> `count` and its scores, for the tasks that were asked; `overall` where all three of PerBench's were."""
    by_task = {
        task: [row for row in predictions if row.task == task] for task in ("segmentation", "reference", "caption", "choice")
    }
    found = {
        "segmentation": _segmentation(by_task["segmentation"]),
        "reference": segmentation_scores(map(overlap_of, by_task["reference"]))
        | paper_reference_scores(map(paper_overlap_of, by_task["reference"])),
        "caption": _caption(by_task["caption"], with_meteor),
        "choice": choice_scores((row.question, row.expected, row.text) for row in by_task["choice"]),
    }
    scores: Scores = {task: {"count": len(by_task[task])} | found[task] for task in found if by_task[task]}
    return scores | overall_of(scores)


def _segmentation(rows: Sequence[Prediction]) -> dict[str, float]:
    """The authors' scores differ where targets have levels, and are left out where none has."""
    scores = segmentation_scores(map(overlap_of, rows))
    if any(row.levels for row in rows):
        paper = segmentation_scores(map(paper_overlap_of, rows))
        scores |= {f"{name}_paper": paper[name] for name in ("ciou", "giou")}
    return scores


def _caption(rows: Sequence[Prediction], with_meteor: bool) -> dict[str, float]:
    said, known = [row.text for row in rows], [row.expected for row in rows]
    scores = caption_scores(said, [[text] for text in known])
    if rows and with_meteor:
        return {"meteor": meteor(said, known), "meteor_paper": paper_meteor(said, known)} | scores
    return scores


def overall_of(scores: Scores) -> Scores:
    """`perbench` of scores counted right, and `perbench_paper` of none but the authors'. Without METEOR there is neither."""
    if not {"caption", "choice", "reference"} <= scores.keys():
        return {}
    if "meteor" in scores["caption"]:
        return {"overall": {f"perbench{kind}": _mean(scores, "meteor" + kind, kind) for kind in ("", "_paper")}}
    return {"overall": {"perbench_by_rouge_l": _mean(scores, "rouge_l", "")}}


def _mean(scores: Scores, caption: str, kind: str) -> float:
    reference = scores["reference"]
    choice, ciou, giou = scores["choice"]["accuracy" + kind], reference["ciou" + kind], reference["giou" + kind]
    return overall(scores["caption"][caption], choice, ciou, giou) / 100


def overlap_of(row: Prediction) -> Overlap:
    """Of the first predicted mask and the first target, outside what is void; what is not there is empty."""
    values_HW = _target(row)
    return _overlap(row, values_HW % VOID > 0, values_HW == VOID)


def paper_overlap_of(row: Prediction) -> Overlap:
    """The same as the authors count, whose targets have been run lengths: there every change of value is a border, so that what
    is covered twice, or is void, ends a target or begins one."""
    return _overlap(row, Rle.of(_target(row)).mask())


def _overlap(row: Prediction, target_HW: np.ndarray, void_HW: np.ndarray | None = None) -> Overlap:
    predicted_HW = row.masks[0].mask() if row.masks else None
    return replace(overlap(predicted_HW, target_HW, void_HW), targets=len(row.targets))


def _target(row: Prediction) -> np.ndarray:
    """uint8 HW: the values of the first target; where there is none, zeros."""
    if row.targets:
        return valued(row.targets[0], row.levels[0] if row.levels else [])
    return np.zeros((row.masks[0].height, row.masks[0].width) if row.masks else (1, 1), np.uint8)


def chose_right(row: Prediction) -> bool:
    return is_right(row.question, row.expected, row.text)
