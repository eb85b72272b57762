"""A certificate of a codec: through which student it is measured, and that it is known by that student's weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flows.config import Project
from flows.graph import steps_of
from schemas.artifact import Artifact
from schemas.grids import PatchGrid
from schemas.storage import Folder
from schemas.tables import IMAGES
from stages.base import Resources
from stages.certificate import CertificateStage
from stages.sources.shapes.config import ShapesConfig
from stages.train import TrainStage
from stages.vocabulary import FILE
from student.config import BaseConfig, LossConfig, TeacherLoss
from student.model import PixelSail
from student.weights import export
from teachers.sam2.config import Sam2Config
from tests.stages.scenes import scenes
from tests.student.micro import micro_config, micro_vocabulary

TEACHER = Sam2Config()


def stage(base: BaseConfig | None = None) -> CertificateStage:
    return CertificateStage(
        name="sam2",
        teacher=TEACHER,
        grid=PatchGrid(patch=16, max_side=64, cells=1),
        student=micro_config(),
        reads="patches",
        ladder=("int8",),
        pictures=1,
        basis_pictures=1,
        base=base,
    )


def exported(folder: Path, seed: int) -> BaseConfig:
    """The student that is drawn from this seed, as a folder to start from."""
    model = PixelSail(micro_config(), micro_vocabulary(), torch.Generator().manual_seed(seed))
    export.write(Folder(str(folder)), model, micro_vocabulary(), "")
    return BaseConfig(weights="ours", folder=str(folder))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    workspace = Folder(str(tmp_path_factory.mktemp("inputs")))
    images = Artifact(workspace.child("images"), {}, IMAGES, 1, "images")
    images.write(0, IMAGES.rows([image for image, _ in scenes(1, 1)]))
    vocabulary = Artifact(workspace.child("vocabulary"), {}, None, 0, "vocabulary")
    vocabulary.folder.write(FILE, micro_vocabulary().to_json().encode())
    return {"images": images, "vocabulary": vocabulary}


def measured(stage: CertificateStage, inputs: dict[str, Artifact], folder: Path) -> dict[str, Any]:
    (row,) = stage.run(inputs, Artifact(Folder(str(folder)), {}), Resources(), lambda *told: None).summary["codecs"]
    return row


def test_it_is_measured_through_the_student_that_training_starts_from(inputs, tmp_path):
    bases = [None, exported(tmp_path / "same", 0), exported(tmp_path / "other", 1)]
    drawn, same, other = (measured(stage(base), inputs, tmp_path / str(n)) for n, base in enumerate(bases))
    assert same == drawn, "the weights of the base are those that the seed gives"
    assert other["relative_error"] == drawn["relative_error"], "of the map, which no student has a part in"
    assert other["late_gradient_cosine"] != drawn["late_gradient_cosine"]


def test_it_is_known_by_the_weights_of_the_base_and_without_one_as_ever(tmp_path):
    without, base = stage(), exported(tmp_path / "base", 0)
    assert "base" not in without.identity() and without.outside() == {}
    assert stage(base).identity()["base"] == {"weights": "ours"}
    before = stage(base).outside()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"other weights")
    assert stage(base).outside() != before


def test_the_project_s_base_is_that_of_the_certificate(tmp_path):
    project = Project(
        name="ours",
        workspace=str(tmp_path),
        source=ShapesConfig(kind="shapes"),
        teachers={"sam2": TEACHER},
        loss=LossConfig(distillation={"sam2": TeacherLoss(weight=1.0, reads="patches")}),
        base=exported(tmp_path / "base", 0),
    )
    stages = {step.name: step.stage for step in steps_of(project)}
    training, certificate = stages["train"], stages["certificate/sam2"]
    assert isinstance(training, TrainStage) and isinstance(certificate, CertificateStage)
    assert certificate.base == training.base == project.base
    assert certificate.outside() == training.outside()
