"""Training behind its certificates: a real teacher's rows, a certificate that is measured, and a student that is or is not
trained on them."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import teachers.extract
from schemas.artifact import Artifact
from schemas.errors import StageFailed, StaleArtifact
from schemas.features import FeatureSpec
from schemas.grids import Grid, PatchGrid
from schemas.storage import Folder
from stages.base import Inputs, Resources, make_shard
from stages.basis import BasisStage, some_pictures
from stages.certificate import FILE, CertificateStage, demand, read_certificate, worst_cosine
from stages.features import FeaturesStage
from stages.train import TrainStage
from stages.vocabulary import FILE as VOCABULARY
from student.config import LossConfig, TeacherLoss
from student.train_config import TrainConfig
from student.training import checkpoint
from teachers.sam2.config import Sam2Config
from tests.student.micro import micro_config, micro_vocabulary
from tests.student.stores import FAST, write_store

HERE, COMPONENTS, LADDER = Resources(executor="local"), 2, ("bf16", "int8", "points9", "pca2-int8")
TEACHER, GRID = Sam2Config(), PatchGrid(patch=16, max_side=64, cells=1)
SETTINGS: dict[str, Any] = {
    "name": "sam2",
    "teacher": TEACHER,
    "grid": GRID,
    "student": micro_config(),
    "reads": "patches",
    "ladder": LADDER,
    "pictures": 1,
    "basis_pictures": 1,
}


def quiet(done: int, total: int, unit: str, note: str = "") -> None:
    """Nobody looks."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Pictures with their dialogues, a vocabulary, and two bases, fitted on one picture and on two."""
    folder = Folder(str(tmp_path_factory.mktemp("store")))
    made = write_store(folder, np.random.default_rng(0))
    vocabulary = Artifact(folder.child("vocabulary"), {"stage": "vocabulary"})
    vocabulary.folder.write(VOCABULARY, micro_vocabulary().to_json().encode())
    bases = {f"basis of {count}": fitted(folder.child(f"basis{count}"), made.images, count) for count in (1, 2)}
    return {"images": made.images, "samples": made.samples, "vocabulary": vocabulary, **bases}


def fitted(folder: Folder, images: Artifact, pictures: int) -> Artifact:
    basis = Artifact(folder, {"stage": "basis", "pictures": pictures}, name="basis/sam2")
    stage = BasisStage(teacher=TEACHER, grid=GRID, components=COMPONENTS, pictures=pictures)
    made = stage.run({"images": images}, basis, HERE, quiet)
    basis.seal("2020", "2020", {}, code="", packages={}, summary=made.summary)
    return basis


def column(store: Inputs, folder: Path, codec: str, basis: str = "", grid: Grid = GRID) -> Artifact:
    """The rows of all pictures, encoded with this basis of the store."""
    stage, whole = FeaturesStage(name="sam2", teacher=TEACHER, grid=grid, codec=codec), chosen(store, basis)
    features = Artifact(
        Folder(str(folder / "features")), {"stage": "features", "codec": codec}, stage.table(), 2, "features/sam2"
    )
    function = stage.open(HERE, whole)
    for number in range(features.shards):
        make_shard(function, {"images": store["images"]}, features, number)
    features.seal("2020", "2020", whole, code="", packages={})
    return features


def chosen(store: Inputs, basis: str) -> dict[str, Artifact]:
    return {"basis": store[basis]} if basis else {}


def certificate(store: Inputs, folder: Path, basis: str = "", **changes: Any) -> Artifact:
    stage = CertificateStage(**{**SETTINGS, **changes})
    made = Artifact(Folder(str(folder / "certificate")), {"stage": "certificate"}, name="certificate/sam2")
    inputs = {"images": store["images"], "vocabulary": store["vocabulary"], **chosen(store, basis)}
    stage.run(inputs, made, HERE, quiet)
    return made


def train(
    store: Inputs,
    features: Artifact,
    certificate: Artifact,
    output: Artifact,
    basis: str = "",
    *,
    reads: Literal["patches", "mask_features"] = "patches",
    **changes: Any,
) -> None:
    settings = {"steps": 1, "batch": 2, "micro_batch": 2, "log_every": 1, **changes}
    loss = LossConfig(points=64, distillation={"sam2": TeacherLoss(reads=reads)})
    stage = TrainStage(student=micro_config(), loss=loss, optim=FAST, train=TrainConfig(**settings))
    inputs = {name: store[name] for name in ("images", "samples", "vocabulary")}
    inputs |= {f"{role}/sam2": each for role, each in chosen(store, basis).items()}
    stage.run({**inputs, "features/sam2": features, "certificate/sam2": certificate}, output, HERE, quiet)


@pytest.fixture
def output(tmp_path: Path) -> Artifact:
    return Artifact(Folder(str(tmp_path / "train")), {"stage": "train"})


def test_what_is_as_good_as_live_is_trained_on(store: Inputs, tmp_path: Path, output: Artifact):
    train(store, column(store, tmp_path, "bf16"), certificate(store, tmp_path), output)
    assert checkpoint.steps(output.folder) == [0, 1]


def test_what_is_stored_too_coarsely_is_not(store: Inputs, tmp_path: Path, output: Artifact):
    features, measured = column(store, tmp_path, "pca2-int8", "basis of 2"), certificate(store, tmp_path, "basis of 2")
    with pytest.raises(
        StageFailed, match=r"features.sam2: pca2-int8 turns the student's gradient: cosine 0\.\d+, less than 0.99"
    ):
        train(store, features, measured, output, "basis of 2")
    assert output.folder.tree() == {}
    train(store, features, measured, output, "basis of 2", min_gradient_cosine=0.1)
    assert checkpoint.steps(output.folder) == [0, 1]


def moved(map_Chw: torch.Tensor) -> torch.Tensor:
    """By half a pixel to the right and down."""
    twice_1Chw = F.interpolate(map_Chw[None], scale_factor=2, mode="bilinear").roll((1, 1), dims=(2, 3))
    return F.avg_pool2d(twice_1Chw, 2)[0]


def off_when_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    true = FeatureSpec.encode

    def encode(self: FeatureSpec, map_Chw: np.ndarray, *rest: Any) -> bytes:
        return true(self, moved(torch.from_numpy(map_Chw)).numpy(), *rest)

    monkeypatch.setattr(FeatureSpec, "encode", encode)


def off_when_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    true = teachers.extract._resized

    def resized(map_Chw: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
        return true(map_Chw if grid is None else moved(map_Chw.float()), grid)

    monkeypatch.setattr(teachers.extract, "_resized", resized)


def off_at_the_corners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a pixel at the rim, as with corners for centres."""

    def resized(map_Chw: torch.Tensor, grid: tuple[int, int] | None) -> torch.Tensor:
        whole = map_Chw.float()
        return whole if grid is None else F.interpolate(whole[None], size=grid, mode="bilinear", align_corners=True)[0]

    monkeypatch.setattr(teachers.extract, "_resized", resized)


@pytest.mark.parametrize("fault", [off_when_encoded, off_when_resized, off_at_the_corners])
def test_half_a_pixel_on_the_way_to_the_store_keeps_training_from_beginning(
    store: Inputs,
    tmp_path: Path,
    output: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
):
    fault(monkeypatch)
    with pytest.raises(StageFailed, match=r"bf16 turns the student's gradient: cosine 0.9\d\d\d, less than 0.99"):
        train(store, column(store, tmp_path, "bf16"), certificate(store, tmp_path), output)
    assert output.folder.tree() == {}


@pytest.mark.parametrize("fault", [None, off_when_encoded, off_when_resized])
def test_nor_does_it_where_that_hardly_turns_the_gradient(
    store: Inputs,
    tmp_path: Path,
    output: Artifact,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None] | None,
):
    """A coarse map that is enlarged to the mask features' grid."""
    if fault:
        fault(monkeypatch)
    fine = PatchGrid(patch=16, max_side=64, cells=4)
    measured = certificate(store, tmp_path, grid=fine, reads="mask_features")
    assert worst_cosine(read_certificate(measured)["codecs"][0]) > 0.99
    with pytest.raises(StageFailed, match=r"off the teacher's maps by \d+") if fault else nullcontext():
        train(store, column(store, tmp_path, "int8", grid=fine), measured, output, reads="mask_features")
    assert bool(output.folder.tree()) == (fault is None)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"places_seed": 5}, "seed: 5 -> 0"),
        ({"grid": (4, 4)}, r"grid: \[4, 4\] -> "),
        ({"teacher": Sam2Config(layer="high_res_1")}, 'channels: 8 -> 32|layer: "high_res_1" -> "image_embed"'),
        ({"ladder": ("bf16", "int8")}, "points9 was not measured"),
    ],
)
def test_a_certificate_of_another_column_counts_for_nothing(
    store: Inputs, tmp_path: Path, output: Artifact, changes: dict[str, Any], fault: str
):
    features, measured = column(store, tmp_path, "points9"), certificate(store, tmp_path, **changes)
    with pytest.raises(StaleArtifact, match=rf"not of what features/sam2 stores: .*({fault}).*--rebuild certificate/sam2"):
        train(store, features, measured, output, min_gradient_cosine=-1)
    assert output.folder.tree() == {}


@pytest.mark.parametrize("other", ["", "basis of 1"])
def test_nor_does_one_of_components_along_other_axes(store: Inputs, tmp_path: Path, output: Artifact, other: str):
    features, measured = column(store, tmp_path, "pca2-int8", "basis of 2"), certificate(store, tmp_path, other)
    with pytest.raises(StaleArtifact, match="stores: pca2-int8 was measured with another basis. Run with --rebuild"):
        train(store, features, measured, output, "basis of 2", min_gradient_cosine=-1)
    assert output.folder.tree() == {}


def test_the_basis_of_the_rows_is_the_one_that_is_measured(store: Inputs, tmp_path: Path):
    rows = {}
    for basis in ("", "basis of 1", "basis of 2"):
        found = json.loads(certificate(store, tmp_path / basis, basis).folder.read(FILE))
        assert found["bases"] == ({"pca2-int8": store[basis].reference()} if basis else {})
        rows[basis] = {row["codec"]: row for row in found["codecs"]}
    assert len({row["pca2-int8"]["relative_error"] for row in rows.values()}) == 3


def test_it_is_not_measured_on_what_its_basis_was_fitted_on(store: Inputs, tmp_path: Path):
    """Where there are other pictures."""
    stage, keys = CertificateStage(**SETTINGS), [row["image_key"] for row in some_pictures(store["images"], 8)]
    for basis, fitted in (("", 0), ("basis of 1", 1), ("basis of 2", 2)):
        sample = stage._sample({"images": store["images"], **chosen(store, basis)})
        assert [image["image_key"] for image in sample] == keys[fitted : fitted + 2]
    few = stage.model_copy(update={"pictures": 7, "basis_pictures": 1})
    sample = few._sample({"images": store["images"], **chosen(store, "basis of 2")})
    assert [image["image_key"] for image in sample] == [*keys[2:], *keys[:2]]


def test_a_certificate_of_old_holds_for_what_needs_no_basis(store: Inputs, tmp_path: Path):
    """It does not say what it is of: it was made with places of seed 0, and a basis of its own."""
    old = certificate(store, tmp_path, "basis of 2")
    said = json.loads(old.folder.read(FILE))
    old.folder.write(FILE, json.dumps({name: said[name] for name in ("column", "pictures", "codecs")}).encode())
    demand(old, column(store, tmp_path / "whole", "bf16"), 0.99)
    with pytest.raises(StaleArtifact, match="another basis"):
        demand(old, column(store, tmp_path / "components", "pca2-int8", "basis of 2"), -1)
