"""IMAGES -> a basis: the principal axes of a teacher's channels on a sample of the pool, for the codecs `pca<k>-int8`."""

import io
from typing import Any

import numpy as np

from schemas.artifact import Artifact
from schemas.codecs import Basis
from schemas.errors import BrokenArtifact, DataError, NonFinite
from schemas.grids import Grid, grid_of
from schemas.pictures import decode, sound_bytes
from schemas.tables import Table
from stages.base import Inputs, JobStage, Outcome, Progress, Resources
from teachers.base import NetworkConfig
from teachers.config import TeacherConfig

FILE = "basis.npy"


class BasisStage(JobStage):
    """`components` axes, from `pictures` pictures; their maps lie on the grid on which they will be stored."""

    teacher: TeacherConfig
    grid: Grid
    components: int
    pictures: int = 64

    def table(self) -> Table | None:
        return None

    def opens(self) -> NetworkConfig:
        return self.teacher

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        from teachers.build import build_teacher

        teacher = build_teacher(self.teacher, device=resources.device, threads=resources.threads)
        sample = some_pictures(inputs["images"], self.pictures)
        moments = Moments(self.teacher.feature_channels)
        for number, image in enumerate(sample, start=1):
            grid = grid_of(self.grid, image["width"], image["height"])
            moments.add(*teacher.features([decode(image["bytes"])], [grid]))
            progress(number, len(sample), "pictures")
        basis, explained = moments.basis(self.components)
        output.folder.write(FILE, _file(basis))
        return Outcome({"pictures": len(sample), "explained_variance": round(explained, 6)})


def some_pictures(images: Artifact, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of IMAGES that have pixels. A key is a digest, and it decides shard and order: they are a random
    sample of the pool, and always the same."""
    found: list[dict[str, Any]] = []
    for rows in images.iterate(["image_key", "width", "height", "bytes", "sha256", "error"]):
        good = rows.filter(rows.column("error").is_null())
        found += [{**image, "bytes": sound_bytes(image)} for image in good.slice(0, count - len(found)).to_pylist()]
        if len(found) == count:
            break
    if not found:
        raise DataError("no picture can be decoded", images.where, "Look at its record: `sailyard show`.")
    return found


class Moments:
    """Sums over the cells of maps, in float64, of which their mean and covariance follow."""

    def __init__(self, channels: int):
        self._count, self._sum_C, self._products_CC = 0, np.zeros(channels), np.zeros((channels, channels))

    def add(self, map_Chw: np.ndarray) -> None:
        """A map that is not finite is left out: as a row of features it will fail by itself."""
        if not np.isfinite(map_Chw).all():
            return
        flat_Cn = map_Chw.reshape(len(map_Chw), -1).astype(np.float64)
        self._count += flat_Cn.shape[1]
        self._sum_C += flat_Cn.sum(axis=1)
        self._products_CC += flat_Cn @ flat_Cn.T

    def basis(self, components: int) -> tuple[Basis, float]:
        """The first axes, each pointing to where its largest part is positive, and the share of the variance along them."""
        if not self._count:
            raise NonFinite("no picture of the sample has a finite map", "basis", "Look at the teacher's weights and dtype.")
        mean_C = self._sum_C / self._count
        covariance_CC = self._products_CC / self._count - np.outer(mean_C, mean_C)
        variance_C, axes_CC = np.linalg.eigh(covariance_CC)
        axes_CK = axes_CC[:, ::-1][:, :components]
        signs_K = np.sign(axes_CK[np.abs(axes_CK).argmax(axis=0), np.arange(axes_CK.shape[1])])
        share = float(variance_C[::-1][:components].sum() / max(variance_C.sum(), np.finfo(float).tiny))
        return Basis(mean_C.astype(np.float32), (axes_CK * signs_K).astype(np.float32)), share


def _file(basis: Basis) -> bytes:
    """The mean and the axes as the columns of one .npy array."""
    sink = io.BytesIO()
    np.save(sink, np.column_stack([basis.mean_C, basis.axes_CK]), allow_pickle=False)
    return sink.getvalue()


def read_basis(artifact: Artifact) -> Basis:
    try:
        columns = np.load(io.BytesIO(artifact.folder.read(FILE)), allow_pickle=False)
        return Basis(np.ascontiguousarray(columns[:, 0]), np.ascontiguousarray(columns[:, 1:]))
    except (OSError, ValueError, IndexError) as error:
        raise BrokenArtifact(f"the basis cannot be read: {error}", artifact.where, "Run `sailyard verify`.") from None
