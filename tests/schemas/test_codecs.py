import numpy as np
import pytest
import torch

from schemas import codecs
from schemas.codecs import Basis
from schemas.errors import DataError, NonFinite
from schemas.features import FeatureSpec
from schemas.grids import PatchGrid

KEY = "0123456789abcdef0123456789abcdef"
CODECS = ["bf16", "bf16-zstd", "int8", "pca2-int8", "pca3-int8", "points7", "points1000"]


def spec_of(codec: str) -> FeatureSpec:
    return FeatureSpec(teacher="t", layer="l", channels=3, grid="native", codec=codec, seed=5)


@pytest.fixture
def values(rng):
    return rng.standard_normal((3, 4, 5)).astype(np.float32)


@pytest.fixture
def basis(rng):
    axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return Basis(rng.standard_normal(3).astype(np.float32), axes.astype(np.float32))


def test_bf16_rounds_as_torch_does(rng):
    values = (rng.standard_normal((3, 4, 5)) * 10.0 ** rng.integers(-30, 30, (3, 4, 5))).astype(np.float32)
    stored = spec_of("bf16").encode(values, KEY)
    expected = torch.from_numpy(values).to(torch.bfloat16)
    assert stored == expected.view(torch.uint16).numpy().tobytes()
    assert np.array_equal(spec_of("bf16").decode(stored, 4, 5), expected.float().numpy())


def test_squeezed_rows_are_the_bf16_rows_and_smaller(rng):
    values = rng.standard_normal((3, 40, 50)).astype(np.float32)
    plain, squeezed = (spec_of(codec).encode(values, KEY) for codec in ("bf16", "bf16-zstd"))
    assert len(squeezed) < 0.8 * len(plain)
    assert np.array_equal(spec_of("bf16-zstd").decode(squeezed, 40, 50), spec_of("bf16").decode(plain, 40, 50))


def test_int8_is_off_by_half_a_step_of_each_channel_at_most(values):
    values *= np.array([1e-3, 1, 1e3], np.float32)[:, None, None]
    spec = spec_of("int8")
    read = spec.decode(spec.encode(values, KEY), 4, 5)
    assert (np.abs(read - values).max(axis=(1, 2)) <= np.abs(values).max(axis=(1, 2)) / 127 * 0.501).all()


def test_a_channel_of_zeros_stays_one():
    assert not spec_of("int8").decode(spec_of("int8").encode(np.zeros((3, 4, 5), np.float32), KEY), 4, 5).any()


def test_all_components_give_the_map_and_fewer_its_projection(values, basis):
    whole, some = spec_of("pca3-int8"), spec_of("pca2-int8")
    read = whole.decode(whole.encode(values, KEY, basis), 4, 5, basis)
    np.testing.assert_allclose(read, values, atol=0.05)
    projected = basis.first(2).expand(basis.first(2).reduce(values))
    np.testing.assert_allclose(some.decode(some.encode(values, KEY, basis), 4, 5, basis.first(2)), projected, atol=0.05)
    assert some.decode(some.encode(values, KEY, basis), 4, 5).shape == (2, 4, 5)


def test_components_need_a_basis_that_has_them(values, basis):
    with pytest.raises(ValueError, match="pca3-int8 needs a basis of 3 components"):
        spec_of("pca3-int8").encode(values, KEY, basis.first(2))


def test_points_are_cells_of_the_map_drawn_anew_for_each_picture(values):
    spec, other = spec_of("points7"), KEY[:-1] + "0"
    arrays = spec.arrays(spec.encode(values, KEY), 4, 5)
    assert len(set(arrays["places"].tolist())) == 7
    expected = codecs.from_bf16_bits(codecs.bf16_bits(values.reshape(3, -1)[:, arrays["places"]]))
    assert np.array_equal(spec.decode(spec.encode(values, KEY), 4, 5), expected)
    assert spec.encode(values, KEY) == spec.encode(values, KEY)
    assert arrays["places"].tolist() != spec.arrays(spec.encode(values, other), 4, 5)["places"].tolist()


def test_the_mean_over_points_is_unbiased(rng):
    """Over many pictures with one map, the mean over the places comes to the mean over the grid."""
    values = rng.standard_normal((3, 4, 5)).astype(np.float32)
    spec = spec_of("points4")
    keys = [f"{number:032x}" for number in range(2000)]
    means = [spec.decode(spec.encode(values, key), 4, 5).mean() for key in keys]
    assert abs(np.mean(means) - values.mean()) < 4 * np.std(means) / len(keys) ** 0.5 + 1e-3


@pytest.mark.parametrize("codec", CODECS)
def test_a_row_that_is_cut_is_refused_by_name(codec, values, basis):
    spec = spec_of(codec)
    stored = spec.encode(values, KEY, basis)
    with pytest.raises(DataError, match="a feature of t cannot be read"):
        spec.decode(stored[:-2], 4, 5, basis)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad, values):
    values[1, 2, 3] = bad
    with pytest.raises(NonFinite, match="t made a feature"):
        spec_of("bf16").encode(values, KEY)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("large", [3.38e38, 3.396e38, 3.3962e38, 3.4e38, float(np.finfo(np.float32).max)])
def test_a_finite_feature_is_finite_as_it_is_read_or_refused(codec, large):
    spec, axes = spec_of(codec), Basis(np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
    values = np.stack([np.full((4, 5), each, np.float32) for each in (large, -large, 1)])
    try:
        stored = spec.encode(values, KEY, axes)
    except NonFinite as error:
        assert large > 3.39e38 and str(error) == f"t made a feature that is not finite as {codec}"
    else:
        assert np.isfinite(spec.decode(stored, 4, 5)).all()


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="expected 3 channels"):
        spec_of("bf16").encode(np.zeros((4, 4, 5), np.float32), KEY)


@pytest.mark.parametrize("name", ["fp8", "pca0-int8", "pca-int8", "points0", "pca16", "int8-zstd"])
def test_unknown_codecs_are_refused(name):
    with pytest.raises(ValueError, match="codec"):
        spec_of(name)


@pytest.mark.parametrize(
    ("width", "height", "grid"), [(640, 480, (30, 40)), (480, 640, (40, 30)), (2250, 1500, (43, 64)), (1, 1, (1, 1))]
)
def test_the_student_grid_follows_the_size_of_the_picture(width, height, grid):
    assert PatchGrid(patch=16, max_side=1024).of(width, height) == grid
    assert PatchGrid(patch=16, max_side=1024, cells=4).of(width, height) == (4 * grid[0], 4 * grid[1])
