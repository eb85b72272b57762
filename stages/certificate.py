"""IMAGES -> a certificate: what each codec would cost the student, for which nothing needs to be stored.

On a few pictures the teacher runs live. Its maps go through the very path by which they would be stored (the teacher's resize,
the codec, the loader's decoding) and are held against the authors' loss, which resizes the teacher's own map in the training
step. Training refuses a column whose certificate is too low, or is of something else than the column stores, or shows that
rows are not the teacher's maps, and `sailyard budget` chooses codecs by it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from schemas.artifact import Artifact
from schemas.codecs import Basis, codec_of
from schemas.config import differences, execution, later
from schemas.errors import BrokenArtifact, NonFinite, StageFailed, StaleArtifact
from schemas.features import CodecName, FeatureSpec
from schemas.grids import Grid, PatchGrid, grid_of
from schemas.pictures import decode
from schemas.tables import Table
from stages.base import Inputs, JobStage, Outcome, Progress, Resources
from stages.basis import Moments, read_basis, some_pictures
from stages.vocabulary import FILE as VOCABULARY
from stages.vocabulary import base_digest
from student.config import BaseConfig, StudentConfig
from teachers.base import NetworkConfig
from teachers.config import TeacherConfig

FILE = "certificate.json"
ROUNDING = 0.01  # what bf16 adds to a map stays far below
LADDER = ("bf16", "bf16-zstd", "int8", "pca128-int8", "pca64-int8", "pca32-int8", "points8000", "points2000", "points500")


class CertificateStage(JobStage):
    """Every codec of the `ladder` on `pictures` pictures, components by a basis that is fitted on `basis_pictures` others.
    `reads` is the student's tensor that the teacher is held against, in the teacher's own space; the student is one that
    training would start from, drawn from the seed, with the weights of the `base` where there is one.

    What a column adds to that is no part of what its certificate is known by, which is there before the column and outlasts a
    change of it: the seed of its places, and the `basis` of its components, a gate, with which the codec of as many components
    is measured. The certificate says of which it is, and training holds that against what is stored."""

    name: str
    teacher: TeacherConfig
    grid: Grid
    student: StudentConfig
    reads: Literal["patches", "mask_features"]
    seed: int = 0
    ladder: tuple[CodecName, ...] = LADDER
    pictures: int = 4
    basis_pictures: int = 16
    places_seed: int = execution(0)
    base: BaseConfig | None = later(None)

    def outside(self) -> dict[str, str]:
        return super().outside() | ({"base": base_digest(self.base)} if self.base else {})

    def table(self) -> Table | None:
        return None

    def opens(self) -> NetworkConfig:
        return self.teacher

    def run(self, inputs: Inputs, output: Artifact, resources: Resources, progress: Progress) -> Outcome:
        from teachers.build import build_teacher

        teacher = build_teacher(self.teacher, device=resources.device, threads=resources.threads)
        judge = self._judge(inputs["vocabulary"], resources.device)
        sample = self._sample(inputs)
        shown, others = sample[: self.pictures], sample[self.pictures :] or sample
        stored = self._stored_basis(inputs)
        bases = self._bases(self._stored(teacher, image) for image in others) | stored
        found: list[dict[str, tuple[Any, int]]] = []
        for number, image in enumerate(shown, start=1):
            found += self._measured(teacher, judge, image, bases)
            progress(number, len(shown), "pictures")
        if not found:
            what = "no picture of the sample has a finite map"
            raise NonFinite(what, output.where, "Look at the teacher's weights and dtype.")
        content = {
            "column": self.name,
            "pictures": len(found),
            "spec": self._spec("bf16").model_dump(mode="json", exclude={"codec"}),
            "bases": {codec: inputs["basis"].reference() for codec in stored},
            "codecs": [self._row(codec, found) for codec in self._codecs()],
        }
        output.folder.write(FILE, json.dumps(content, indent=1).encode())
        return Outcome(content)

    def _sample(self, inputs: Inputs) -> list[dict[str, Any]]:
        """First those that the basis of the rows was not fitted on, which would flatter it."""
        record = inputs["basis"].record() if "basis" in inputs else None
        fitted, count = record.summary["pictures"] if record else 0, self.pictures + self.basis_pictures
        found = some_pictures(inputs["images"], fitted + count)
        return [*found[fitted:], *found[:fitted]][:count]

    def _judge(self, vocabulary: Artifact, device: str) -> Any:
        from student.fidelity import Judge
        from student.training.run import initial_student
        from student.vocabulary import Vocabulary
        from student.weights.base import load

        words = Vocabulary.from_json(vocabulary.folder.read(VOCABULARY).decode())
        student = initial_student(self.student, words, self.seed)
        if self.base:
            load(student, words, self.base, self.seed)
        return Judge(
            student=student,
            vocabulary=words,
            reads=self.reads,
            channels=self.teacher.feature_channels,
            seed=self.seed,
            device=device,
        )

    def _measured(
        self, teacher: Any, judge: Any, image: Mapping[str, Any], bases: Mapping[str, Basis]
    ) -> Iterator[dict[str, tuple[Any, int]]]:
        """codec -> what it costs on this picture, and the bytes of its row. Nothing where the map is not finite: as a row of
        features it will fail by itself."""
        pixels = decode(image["bytes"])
        (live,) = teacher.features([pixels], [None])
        if np.isfinite(live).all():
            rows = self._rows(self._stored(teacher, image), image["image_key"], bases)
            readings = judge.compare(pixels, live, {codec: form for codec, (form, _) in rows.items()})
            yield {codec: (reading, rows[codec][1]) for codec, reading in readings.items()}

    def _row(self, codec: str, found: Sequence[Mapping[str, tuple[Any, int]]]) -> dict[str, Any]:
        """The mean over the pictures."""
        from student.fidelity import mean

        readings, sizes = zip(*(each[codec] for each in found), strict=True)
        return {"codec": codec, "bytes_an_image": sum(sizes) // len(sizes), **asdict(mean(list(readings)))}

    def _codecs(self) -> list[str]:
        """Those that the column could have: no more components than there are channels, points on the student's grid alone."""
        fits = lambda codec: (codec_of(codec).components or 0) <= self.teacher.feature_channels  # noqa: E731
        placed = isinstance(self.grid, PatchGrid)
        return [codec for codec in dict.fromkeys(self.ladder) if fits(codec) and (placed or not codec.startswith("points"))]

    def _spec(self, codec: str) -> FeatureSpec:
        channels = self.teacher.feature_channels
        return FeatureSpec(
            teacher=self.name,
            layer=self.teacher.layer,
            channels=channels,
            grid=self.grid,
            codec=codec,
            seed=self.places_seed,
        )

    def _stored(self, teacher: Any, image: Mapping[str, Any]) -> np.ndarray:
        """The map as it would be handed to the codec."""
        grid = grid_of(self.grid, image["width"], image["height"])
        return teacher.features([decode(image["bytes"])], [grid])[0]

    def _bases(self, maps: Iterable[np.ndarray]) -> dict[str, Basis]:
        moments = Moments(self.teacher.feature_channels)
        for map_Chw in maps:
            moments.add(map_Chw)
        most = max([codec_of(codec).components or 0 for codec in self._codecs()])
        basis, _ = moments.basis(most)
        return {codec: basis.first(k) for codec in self._codecs() if (k := codec_of(codec).components)}

    def _stored_basis(self, inputs: Inputs) -> dict[str, Basis]:
        """codec -> the basis that the rows of the column are encoded with; none where no components are stored."""
        if "basis" not in inputs:
            return {}
        basis = read_basis(inputs["basis"])
        return {codec: basis for codec in self._codecs() if codec_of(codec).components == basis.axes_CK.shape[1]}

    def _rows(self, map_Chw: np.ndarray, key: str, bases: Mapping[str, Basis]) -> dict[str, tuple[Any, int]]:
        """codec -> the map as the loader would hand it over, and the bytes of its row."""
        from student.data.features import Column, Stored

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


def demand(certificate: Artifact, features: Artifact, least: float) -> None:
    """Refuse a column whose certificate is of something else than it stores, or whose codec turns the student's gradient by
    more than `least` allows."""
    assert features.table and features.table.spec, f"{features.where} holds no features"
    found, codec = read_certificate(certificate), features.table.spec.codec
    other = _other_than_stored(found, features.table.spec, features)
    if other:
        what = f"it is not of what features/{found['column']} stores: {'; '.join(other)}"
        raise StaleArtifact(what, certificate.where, f"Run with --rebuild certificate/{found['column']} to measure that.")
    worst = next(worst_cosine(row) for row in found["codecs"] if row["codec"] == codec)
    if not worst >= least:
        raise StageFailed(
            f"{codec} turns the student's gradient: cosine {worst:.4f}, less than {least}",
            f"features.{found['column']}",
            "`sailyard budget` shows what other codecs cost; or lower train.min_gradient_cosine.",
        )
    demand_true_rows(found, features.table.spec)


def demand_true_rows(found: Mapping[str, Any], spec: FeatureSpec) -> None:
    """Refuse rows that are not the teacher's map, however little that turns the gradient: where no map is made coarser, bf16
    must give it as the live loss has it, or something on the way that all codecs share has moved it."""
    errors = [row["relative_error"] for row in found["codecs"] if row["codec"] == "bf16"]
    if isinstance(spec.grid, tuple) or all(error <= ROUNDING for error in errors):
        return
    raise StageFailed(
        f"as bf16 its rows are off the teacher's maps by {errors[0]:.1%}, which is no rounding",
        f"features.{found['column']}",
        "Do not train on them: the resize, the codec or the loader has a fault.",
    )


def _other_than_stored(found: Mapping[str, Any], spec: FeatureSpec, features: Artifact) -> list[str]:
    """What differs, a line each. A certificate that was made before it said what it is of has places of seed 0, and no basis
    but its own."""
    stored, measured = spec.model_dump(mode="json"), found.get("spec", {"seed": 0})
    lines = [line for name, value in measured.items() for line in differences(value, stored[name], name)]
    if spec.codec not in {row["codec"] for row in found["codecs"]}:
        lines.append(f"{spec.codec} was not measured")
    record = features.record()
    basis = record.inputs.get("basis") if record else None
    if spec.components and (basis is None or basis != found.get("bases", {}).get(spec.codec)):
        lines.append(f"{spec.codec} was measured with another basis")
    return lines
