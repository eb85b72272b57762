"""The overall PerBench score: the mean of its three tasks, in per cent (reference 7.5 d)."""


def overall(caption: float, accuracy: float, ciou: float, giou: float) -> float:
    """0 … 100: the mean of caption score, choice accuracy and (cIoU + gIoU) / 2, each given in 0 … 1.

    The paper's caption score is METEOR. Any other one makes a number that cannot be held against its Table 3; CIDEr runs to
    10 and would outweigh the other tasks, so where METEOR is missing ROUGE-L stands in. Nor can a mean of some scores counted
    as the authors' scripts do and some counted right: all four are of one kind.
    """
    return 100 * (caption + accuracy + (ciou + giou) / 2) / 3
