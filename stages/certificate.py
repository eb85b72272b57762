"""IMAGES -> a certificate: what each codec would cost the student, measured before anything is stored.

On a few pictures the teacher runs live. Its maps go through the very path by which they would be stored (the teacher's resize,
the codec, the loader's decoding) and are held against the authors' loss, which resizes the teacher's own map in the training
step. Training refuses a column whose certificate is too low, and `sailyard budget` chooses codecs by it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from schemas.artifact import Artifact
from schemas.codecs import Basis, codec_of
from schemas.errors import BrokenArtifact, StageFailed
from schemas.features import CodecName, FeatureSpec
from schemas.grids import Grid, grid_of
from schemas.pictures import decode
from schemas.tables import Table
from stages.base import Inputs, JobStage, Outcome, Progress, Resources
from stages.basis import Moments, read_basis, some_pictures
from stages.features import random_weights_note, weights_digest
from stages.vocabulary import FILE as VOCABULARY
from student.config import StudentConfig, TeacherLoss
from teachers.config import TeacherConfig

FILE = "certificate.json"
LADDER = ("bf16", "bf16-zstd", "int8", "pca128-int8", "pca64-int8", "pca32-int8", "points8000", "points2000", "points500")


class CertificateStage(JobStage):
    """The column's own codec and the `ladder` of others, on `pictures` pictures. Bases are fitted on `basis_pictures` others,
    but for the column's own, which is the one that it is stored with."""

    name: str
    teacher: TeacherConfig
    grid: Grid
    codec: CodecName
    student: StudentConfig
    loss: TeacherLoss
    seed: int = 0
    ladder: tuple[CodecName, ...] = LADDER
    pictures: int = 4
    basis_pictures: int = 16

    def table(self) -> Table | None:
        return None

    def outside(self) -> dict[str, str]:
        return weights_digest(self.teacher)

    def notes(self) -> list[str]:
        return random_weights_note(self.teacher)

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        from student.fidelity import Judge, mean
        from student.vocabulary import Vocabulary
        from teachers.build import build_teacher

        teacher = build_teacher(self.teacher, device=resources.device, threads=resources.threads)
        judge = Judge(
            config=self.student,
            vocabulary=Vocabulary.from_json(inputs["vocabulary"].folder.read(VOCABULARY).decode()),
            loss=self.loss,
            channels=self.teacher.feature_channels,
            seed=self.seed,
            device=resources.device,
        )
        sample = some_pictures(inputs["images"], self.pictures + self.basis_pictures)
        shown, others = sample[: self.pictures], sample[self.pictures :] or sample
        bases = self._bases([self._stored(teacher, image) for image in others], inputs)
        readings: dict[str, list[Any]] = {codec: [] for codec in self._codecs()}
        sizes = dict.fromkeys(readings, 0)
        for number, image in enumerate(shown, start=1):
            rows = self._rows(self._stored(teacher, image), image["image_key"], bases)
            pixels = decode(image["bytes"])
            (live,) = teacher.features([pixels], [None])
            for codec, reading in judge.compare(pixels, live, {codec: form for codec, (form, _) in rows.items()}).items():
                readings[codec].append(reading)
                sizes[codec] += rows[codec][1]
            progress(number, len(shown), "pictures")
        table = [
            {"codec": codec, "bytes_an_image": sizes[codec] // len(shown), **asdict(mean(found))}
            for codec, found in readings.items()
        ]
        content = {"column": self.name, "codec": self.codec, "pictures": len(shown), "codecs": table}
        output.folder.write(FILE, json.dumps(content, indent=1).encode())
        return Outcome(content)

    def _codecs(self) -> list[str]:
        """The column's own first, each once, and none of more components than there are channels."""
        named = dict.fromkeys((self.codec, *self.ladder))
        return [codec for codec in named if (codec_of(codec).components or 0) <= self.teacher.feature_channels]

    def _spec(self, codec: str) -> FeatureSpec:
        channels = self.teacher.feature_channels
        return FeatureSpec(teacher=self.name, layer=self.teacher.layer, channels=channels, grid=self.grid, codec=codec)

    def _stored(self, teacher: Any, image: Mapping[str, Any]) -> np.ndarray:
        """The map as it would be handed to the codec."""
        grid = grid_of(self.grid, image["width"], image["height"])
        return teacher.features([decode(image["bytes"])], [grid])[0]

    def _bases(self, maps: Sequence[np.ndarray], inputs: Inputs) -> dict[str, Basis]:
        moments = Moments(self.teacher.feature_channels)
        for map_Chw in maps:
            moments.add(map_Chw)
        most = max([codec_of(codec).components or 0 for codec in self._codecs()])
        basis, _ = moments.basis(most)
        bases = {codec: basis.first(k) for codec in self._codecs() if (k := codec_of(codec).components)}
        return bases | ({self.codec: read_basis(inputs["basis"])} if "basis" in inputs else {})

    def _rows(self, map_Chw: np.ndarray, key: str, bases: Mapping[str, Basis]) -> dict[str, tuple[Any, int]]:
        """codec -> the map as the loader would hand it over, and the bytes of its row."""
        from student.features import Column, Stored

        rows = {}
        for codec in self._codecs():
            spec, basis = self._spec(codec), bases.get(codec)
            row = spec.encode(map_Chw, key, basis)
            _, height, width = map_Chw.shape
            rows[codec] = (Column(spec, basis), Stored.of(spec, row, (height, width))), len(row)
        return rows


def read_certificate(artifact: Artifact) -> dict[str, Any]:
    """What `CertificateStage` wrote."""
    try:
        return json.loads(artifact.folder.read(FILE))
    except (OSError, ValueError) as error:
        raise BrokenArtifact(f"the certificate cannot be read: {error}", artifact.where, "Run `sailyard verify`.") from None


def worst_cosine(row: Mapping[str, Any]) -> float:
    """Of a codec's gradient with the live one, at the start of training or late."""
    return min(row["gradient_cosine"], row["late_gradient_cosine"])


def demand(certificate: Artifact, least: float) -> None:
    """Refuse a column whose codec turns the student's gradient by more than `least` allows."""
    found = read_certificate(certificate)
    own = next(row for row in found["codecs"] if row["codec"] == found["codec"])
    if worst_cosine(own) < least:
        raise StageFailed(
            f"{found['codec']} turns the student's gradient: cosine {worst_cosine(own):.4f}, less than {least}",
            f"features.{found['column']}",
            "`sailyard budget` shows what other codecs cost; or lower train.min_gradient_cosine.",
        )
