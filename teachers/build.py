"""From a config to the network that it describes: the only way into the files that import torch."""

from typing import TYPE_CHECKING

from schemas.errors import ConfigError
from teachers.base import Segmenter, Teacher
from teachers.config import TeacherConfig
from teachers.mask2former.config import Mask2FormerConfig
from teachers.radio.config import RadioConfig
from teachers.sam2.config import Sam2Config

if TYPE_CHECKING:
    from teachers.extract import Network


def build_teacher(config: TeacherConfig, device: str = "cpu", threads: int = 1) -> Teacher:
    """The teacher that gives maps; `threads` is set for this whole process."""
    from teachers.extract import Extractor

    _set_threads(threads)
    return Extractor(_network(config, device), config.dtype, device)


def _network(config: TeacherConfig, device: str) -> "Network":
    match config:
        case Sam2Config():
            from teachers.sam2.network import Sam2Features

            return Sam2Features(config, device)
        case Mask2FormerConfig():
            from teachers.mask2former.network import Mask2FormerFeatures

            return Mask2FormerFeatures(config, device)
        case RadioConfig():
            from teachers.radio.network import RadioFeatures

            return RadioFeatures(config, device)


def build_segmenter(config: TeacherConfig, device: str = "cpu", threads: int = 1) -> Segmenter:
    """The segmenter of the same network; `threads` is set for this whole process."""
    _set_threads(threads)
    match config:
        case Sam2Config():
            from teachers.sam2.segmenter import Sam2Segmenter

            return Sam2Segmenter(config, device)
        case Mask2FormerConfig():
            from teachers.mask2former.segmenter import Mask2FormerSegmenter

            return Mask2FormerSegmenter(config, device)
        case RadioConfig():
            raise ConfigError("RADIO finds no regions, it gives features only", "kind = radio", "Choose sam2 or mask2former.")


def _set_threads(threads: int) -> None:
    """Sums split over another number of threads differ in their last bits, so no worker may inherit its machine's count."""
    import torch

    torch.set_num_threads(threads)
