import numpy as np
import pytest
import torch

from schemas.errors import NonFinite
from schemas.features import FeatureSpec

SPEC = FeatureSpec(teacher="t", layer="l", channels=3, height=4, width=5)


def test_bf16_rounds_as_torch_does(rng):
    values = (rng.standard_normal(SPEC.shape) * 10.0 ** rng.integers(-30, 30, SPEC.shape)).astype(np.float32)
    stored = SPEC.encode(values)
    expected = torch.from_numpy(values).to(torch.bfloat16)
    assert len(stored) == SPEC.row_bytes
    assert stored == expected.view(torch.uint16).numpy().tobytes()
    assert np.array_equal(SPEC.decode(stored), expected.float().numpy())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad):
    values = np.zeros(SPEC.shape, np.float32)
    values[1, 2, 3] = bad
    with pytest.raises(NonFinite, match="t made a feature"):
        SPEC.encode(values)


def test_another_grid_is_refused():
    with pytest.raises(ValueError, match="expected features of shape"):
        SPEC.encode(np.zeros((3, 4, 6), np.float32))
