"""What the judge of codecs sees, and what it lets pass: on noise maps, a micro student and a picture of noise."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from schemas.codecs import Basis
from schemas.features import FeatureSpec
from schemas.grids import PatchGrid
from student.data.features import Column, Stored
from student.fidelity import Judge, Reading, mean
from student.model import PixelSail
from tests.student.micro import micro_config, micro_vocabulary, picture

CHANNELS, KEY = 8, "0" * 32


@pytest.fixture(params=["patches", "mask_features"])
def scene(request, rng):
    """A judge, a picture, the teacher's own map of it, and the grid it is stored on."""
    config = micro_config()
    judge = Judge(
        student=PixelSail(config, micro_vocabulary(), torch.Generator().manual_seed(0)),
        vocabulary=micro_vocabulary(),
        reads=request.param,
        channels=CHANNELS,
        seed=0,
        device="cpu",
    )
    grid = PatchGrid(patch=16, max_side=64, cells=1 if request.param == "patches" else 4)
    live = F.interpolate(torch.from_numpy(rng.standard_normal((1, CHANNELS, 5, 7))).float(), size=(20, 28), mode="bicubic")
    return judge, picture(rng, 48, 64), live[0].numpy(), grid


def resized(live_Cyx: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(torch.from_numpy(live_Cyx)[None], size=size, mode="bilinear", align_corners=False)[0].numpy()


def form(codec: str, map_Chw: np.ndarray, grid: PatchGrid, basis: Basis | None = None) -> tuple[Column, Stored]:
    spec = FeatureSpec(teacher="t", layer="l", channels=CHANNELS, grid=grid, codec=codec)
    return Column(spec, basis), Stored.of(spec, spec.encode(map_Chw, KEY, basis), map_Chw.shape[1:])


def judged(scene, codec: str, map_Chw: np.ndarray | None = None, basis: Basis | None = None) -> Reading:
    judge, image, live, grid = scene
    stored = resized(live, grid.of(64, 48)) if map_Chw is None else map_Chw
    return judge.compare(image, live, {codec: form(codec, stored, grid, basis)})[codec]


@pytest.mark.parametrize("codec", ["bf16", "bf16-zstd"])
def test_bf16_on_the_student_grid_is_the_live_loss_exactly(scene, codec):
    found = judged(scene, codec)
    assert found.relative_error == found.loss_change == 0
    assert min(found.gradient_cosine, found.late_gradient_cosine) == pytest.approx(1, abs=1e-12)


def test_int8_comes_near_and_says_how_near(scene):
    found = judged(scene, "int8")
    assert 0 < found.relative_error < 0.01
    assert 0.9999 < found.late_gradient_cosine < found.gradient_cosine < 1


def test_fewer_components_cost_more_and_most_of_it_late(scene):
    axes = np.eye(CHANNELS, dtype=np.float32)
    found = [judged(scene, f"pca{k}-int8", basis=Basis(np.zeros(CHANNELS, np.float32), axes)) for k in (8, 6, 4)]
    late = [reading.late_gradient_cosine for reading in found]
    assert late == sorted(late, reverse=True)
    assert found[-1].late_gradient_cosine < found[-1].gradient_cosine


def test_points_err_at_the_start_as_late(scene):
    """They leave cells out, but what they keep is exact."""
    found = judged(scene, "points9")
    assert found.relative_error == 0
    assert found.gradient_cosine == pytest.approx(found.late_gradient_cosine, abs=1e-3)


def test_a_map_that_is_off_by_half_a_pixel_of_the_teacher_is_told_from_a_good_one(scene):
    _, _, live, grid = scene
    height, width = grid.of(64, 48)
    off = F.interpolate(torch.from_numpy(live)[None], size=(2 * live.shape[1], 2 * live.shape[2]), mode="bilinear")
    moved = resized(off.roll((1, 1), dims=(2, 3))[0].numpy(), (height, width))
    found = judged(scene, "bf16", moved)
    assert found.relative_error > 0.1
    assert found.late_gradient_cosine < 0.99


def test_the_mean_is_of_each_number():
    assert mean([Reading(0, 1, 2, 3, 4), Reading(2, 3, 4, 5, 6)]) == Reading(1, 2, 3, 4, 5)
