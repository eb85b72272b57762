"""The original Mask2Former, built by detectron2, against that of transformers: the same checkpoint and pictures, the same maps.

Neither detectron2 nor the authors' package `mask2former` is on the registry, so these tests are asked for by name, where both
can be imported: `pytest -m detectron2 -rP tests/teachers/test_detectron.py`. They need no GPU.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import ConfigError, DataError
from teachers.build import build_teacher
from teachers.config import Mask2FormerConfig
from teachers.mask2former.config import RESNET_50, TINY, Mask2FormerSizes, ResNet
from tests.teachers.test_mask2former_original import arrays, original_state, published, trained, write

# The authors' code is older than the torch that it runs on here, and is warned so.
pytestmark = [pytest.mark.detectron2, pytest.mark.filterwarnings("ignore")]

State = dict[str, Tensor]

MICRO = {"queries": 10, "labels": 8, "pixel_layers": 2, "query_layers": 2, "query_mlp": 64, "decoder_heads": 4}
FULL = MICRO | {"pixel_layers": 6, "decoder_heads": 8}
# Two blocks a stage: the second shifts its windows.
SWIN = {"kind": "swin", "width": 16, "blocks": (2, 2, 2, 2), "heads": (1, 2, 4, 8), "window": 4}
NETWORKS = {
    "micro Swin": Mask2FormerConfig(seed=3, sizes=Mask2FormerSizes(backbone=SWIN, **MICRO)),
    "micro ResNet": Mask2FormerConfig(seed=3, sizes=Mask2FormerSizes(backbone=RESNET_50 | {"width": 8}, **MICRO)),
    "Swin-T": Mask2FormerConfig(seed=3, channels=256, sizes=Mask2FormerSizes(backbone=TINY, **FULL)),
    "ResNet-50": Mask2FormerConfig(seed=3, channels=256, sizes=Mask2FormerSizes(backbone=RESNET_50, **FULL)),
}
# Of the largest value of a map: what two orders of the same float32 sums may differ by.
LIMIT = {"micro Swin": 1e-5, "micro ResNet": 1e-6, "Swin-T": 1e-5, "ResNet-50": 1e-6}


def index(window: int) -> Tensor:
    """Which entry of a Swin's table of biases each pair of places of a window looks up, as the authors publish it."""
    y, x = np.divmod(np.arange(window**2), window)
    rows, columns = (at[:, None] - at[None] + window - 1 for at in (y, x))
    return torch.from_numpy(rows * (2 * window - 1) + columns)


def checkpoint(source: Mask2FormerConfig) -> State:
    """The original state of a random network in which no bias is zero, no norm the identity, and no stage dead."""
    model, draw = trained(source), torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name.endswith("bias_table"):
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    levels = model.model.pixel_level_module.encoder(torch.randn(1, 3, 64, 96, generator=draw)).feature_maps
    assert all(level.std() > 0.1 for level in levels)
    state = original_state(model)
    for name in [name for name in state if name.endswith("relative_position_index")]:
        state[name] = index(source.sizes.backbone.window)
    return state


def both(source: Mask2FormerConfig, state: State, path: Path) -> tuple[Mask2FormerConfig, Mask2FormerConfig]:
    """The configs of the same checkpoint for transformers and for detectron2."""
    ours = published(source, write({"model": arrays(state)}, path))
    return ours, ours.model_copy(update={"backend": "detectron2"})


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest, in units of the largest value."""
    assert one.shape == other.shape
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_transformers(name, pictures, tmp_path):
    source = NETWORKS[name]
    ours, theirs = both(source, checkpoint(source), tmp_path / "model.pkl")
    one, other = (build_teacher(config).features(pictures, [None] * 3) for config in (ours, theirs))
    apart = [difference(*maps) for maps in zip(one, other, strict=True)]
    print(f"{name}: {max(apart):.1e} of the largest value at most, in maps of {', '.join(str(m.shape) for m in one)}")
    assert all(0.5 < feature.std() < 2 for feature in other), "a flat map would show nothing"
    assert max(apart) < LIMIT[name]


def test_pictures_shown_together_give_what_they_give_alone(pictures, tmp_path):
    source = NETWORKS["micro Swin"]
    _, theirs = both(source, checkpoint(source), tmp_path / "model.pkl")
    teacher, images = build_teacher(theirs), [pictures[1], pictures[1][::-1].copy()]
    together = [waiting() for waiting in teacher.show([teacher.prepare(image) for image in images], [None] * 2)]
    for alone, beside in zip(teacher.features(images, [None] * 2), together, strict=True):
        assert difference(beside, alone) < 1e-5


def first_release(state: State) -> State:
    parts = [("query_feat", "static_query"), ("sem_seg_head.pixel_decoder.", "sem_seg_head.")]
    return {name.replace(*parts[0]).replace(*parts[1]): tensor for name, tensor in state.items()}


def without_indices(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("relative_position_index")}


@pytest.mark.parametrize("change", [first_release, without_indices])
def test_the_same_weights_in_another_form_give_the_same_features(change: Callable[[State], State], pictures, tmp_path):
    source = NETWORKS["micro Swin"]
    state = checkpoint(source)
    assert change(state).keys() != state.keys()
    forms = {"one": state, "other": change(state)}
    one, other = (both(source, form, tmp_path / f"{name}.pkl")[1] for name, form in forms.items())
    one, other = (build_teacher(config).features(pictures[:1], [None])[0] for config in (one, other))
    np.testing.assert_array_equal(one, other)


def test_what_does_not_fit_is_named(tmp_path):
    source = NETWORKS["micro Swin"]
    state = checkpoint(source)
    del state["sem_seg_head.pixel_decoder.mask_features.bias"]
    _, theirs = both(source, state, tmp_path / "model.pkl")
    with pytest.raises(DataError, match=r"missing: sem_seg_head\.pixel_decoder\.mask_features\.bias"):
        build_teacher(theirs)
    other = theirs.sizes.model_copy(update={"backbone": ResNet(width=8, blocks=(1, 2, 1, 1))})
    with pytest.raises(ConfigError, match="no ResNet of"):
        build_teacher(theirs.model_copy(update={"sizes": other}))


def test_only_an_original_checkpoint_is_read(tmp_path):
    theirs = NETWORKS["micro Swin"].model_copy(update={"backend": "detectron2"})
    for config in (theirs, published(theirs, tmp_path)):
        with pytest.raises(ConfigError, match=r"reads an original checkpoint only.*in `folder` the \.pkl or \.pth file"):
            build_teacher(config)
