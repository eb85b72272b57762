"""From a config to the network that it describes: the only way into the files that import torch."""

from schemas.errors import ConfigError
from schemas.features import FeatureSpec
from teachers.base import Segmenter, Teacher
from teachers.config import Mask2FormerConfig, Sam2Config, TeacherConfig


def build_teacher(config: TeacherConfig, spec: FeatureSpec, device: str = "cpu", threads: int = 1) -> Teacher:
    """The teacher whose features fill `spec`; `threads` is set for this whole process."""
    if spec.channels != config.channels:
        raise ConfigError(f"the teacher has {config.channels} channels, the spec {spec.channels}", spec.teacher)
    _set_threads(threads)
    match config:
        case Sam2Config():
            from teachers.sam2 import Sam2Teacher

            return Sam2Teacher(config, spec, device)
        case Mask2FormerConfig():
            from teachers.mask2former import Mask2FormerTeacher

            return Mask2FormerTeacher(config, spec, device)


def build_segmenter(config: TeacherConfig, device: str = "cpu", threads: int = 1) -> Segmenter:
    """The segmenter of the same network; `threads` is set for this whole process."""
    _set_threads(threads)
    match config:
        case Sam2Config():
            from teachers.sam2 import Sam2Segmenter

            return Sam2Segmenter(config, device)
        case Mask2FormerConfig():
            from teachers.mask2former import Mask2FormerSegmenter

            return Mask2FormerSegmenter(config, device)


def _set_threads(threads: int) -> None:
    """Sums split over another number of threads differ in their last bits, so no worker may inherit its machine's count."""
    import torch

    torch.set_num_threads(threads)
