"""What is around a network: images shown alone or together, each map on its own grid, in order."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from teachers.build import build_teacher
from teachers.config import TeacherConfig
from teachers.extract import Extractor
from teachers.mask2former.config import Mask2FormerConfig
from teachers.mask2former.network import Mask2FormerFeatures
from teachers.sam2.config import Sam2Config
from teachers.sam2.network import Sam2Features

GRIDS = [None, (5, 9), (40, 40)]
NETWORKS = {"sam2": (Sam2Features, Sam2Config()), "mask2former": (Mask2FormerFeatures, Mask2FormerConfig())}


@pytest.fixture(params=NETWORKS)
def network(request):
    kind, config = NETWORKS[request.param]
    return kind(config)


def alike(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Noise, all prepared to one size by every teacher."""
    return [rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(count)]


def test_features_are_the_maps_of_the_network_on_their_grids(network, pictures):
    for image, grid, feature in zip(pictures, GRIDS, Extractor(network, "float32").features(pictures, GRIDS), strict=True):
        with torch.inference_mode():
            expected = network.maps(network.prepare(image)[None])
            if grid is not None:
                expected = F.interpolate(expected, size=grid, mode="bilinear", align_corners=False)
        assert feature.dtype == np.float32
        np.testing.assert_array_equal(feature, expected[0].numpy())


def test_images_shown_together_have_maps_in_their_order(network, rng):
    images, teacher = alike(rng, 3), Extractor(network, "float32")
    together = [waiting() for waiting in teacher.show([teacher.prepare(image) for image in images], GRIDS)]
    for one, other in zip(together, teacher.features(images, GRIDS), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_images_of_two_sizes_cannot_be_shown_together(rng):
    teacher = Extractor(NETWORKS["mask2former"][0](NETWORKS["mask2former"][1]), "float32")
    wide, high = rng.integers(0, 256, (2, 96, 160, 3), dtype=np.uint8)
    with pytest.raises(RuntimeError, match="equal size"):
        teacher.show([teacher.prepare(wide), teacher.prepare(high.swapaxes(0, 1))], [None, None])


def test_half_precision_comes_back_as_float32(network, pictures):
    exact, rough = (Extractor(network, dtype).features(pictures[:1], [None])[0] for dtype in ("float32", "bfloat16"))
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("config", [Sam2Config(), Mask2FormerConfig()], ids=lambda config: config.kind)
def test_a_device_gives_each_image_its_own_map(config: TeacherConfig, rng):
    """Several batches are launched before the first is waited for, as the stage does."""
    images = alike(rng, 12)
    teacher = build_teacher(config, "cuda")
    assert isinstance(teacher, Extractor)
    batches = [[teacher.prepare(image) for image in images[start : start + 4]] for start in (0, 4, 8)]
    waiting = [each for batch in batches for each in teacher.show(batch, [(12, 16)] * 4)]
    for one, other in zip([each() for each in waiting], build_teacher(config).features(images, [(12, 16)] * 12), strict=True):
        assert np.abs(one - other).max() < 0.05 * other.std()
