"""From rows of PREDICTIONS to scores: which mask is held against which, which words against which. The arithmetic is the
student's own, in `student.metrics`; every score is given in 0 … 1, CIDEr in 0 … 10."""

from collections.abc import Sequence

import numpy as np

from schemas.regions import Rle
from stages.report.reading import Prediction
from student.metrics.caption import caption_scores, meteor
from student.metrics.choice import choice_scores, is_right
from student.metrics.perbench import overall
from student.metrics.segmentation import Overlap, overlap, segmentation_scores

Scores = dict[str, dict[str, float]]


def of(predictions: Sequence[Prediction], with_meteor: bool = False) -> Scores:
    """Task -> `count` and its scores, for the tasks that were asked; `overall` where all three of PerBench's were."""
    by_task = {
        task: [row for row in predictions if row.task == task] for task in ("segmentation", "reference", "caption", "choice")
    }
    found = {
        "segmentation": segmentation_scores(map(overlap_of, by_task["segmentation"])),
        "reference": segmentation_scores(map(overlap_of, by_task["reference"])),
        "caption": _caption(by_task["caption"], with_meteor),
        "choice": choice_scores((row.question, row.expected, row.text) for row in by_task["choice"]),
    }
    scores: Scores = {task: {"count": len(by_task[task])} | found[task] for task in found if by_task[task]}
    return scores | _overall(scores)


def _caption(rows: Sequence[Prediction], with_meteor: bool) -> dict[str, float]:
    """`meteor_swapped` has prediction and reference in each other's place, as the authors' PerBench script has them."""
    said, known = [row.text for row in rows], [[row.expected] for row in rows]
    if not (rows and with_meteor):
        return caption_scores(said, known)
    return {"meteor": meteor(said, known), "meteor_swapped": meteor(said, known, swapped=True)} | caption_scores(said, known)


def _overall(scores: Scores) -> Scores:
    if not {"caption", "choice", "reference"} <= scores.keys():
        return {}
    caption = "meteor_swapped" if "meteor_swapped" in scores["caption"] else "rouge_l"
    reference = scores["reference"]
    score = overall(scores["caption"][caption], scores["choice"]["accuracy"], reference["ciou"], reference["giou"])
    return {"overall": {f"perbench_by_{caption}": score / 100}}


def overlap_of(row: Prediction) -> Overlap:
    """Of the first predicted mask and the first target; what is not there is empty."""
    known = next(iter(row.targets + row.masks), None)
    empty_HW = np.zeros((known.height, known.width) if known else (1, 1), bool)
    return overlap(_first(row.masks), empty_HW if (target := _first(row.targets)) is None else target)


def _first(rles: Sequence[Rle]) -> np.ndarray | None:
    return rles[0].mask() if rles else None


def chose_right(row: Prediction) -> bool:
    return is_right(row.question, row.expected, row.text)
