import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, RadioModel

from schemas.errors import ConfigError, DataError
from teachers.build import build_segmenter, build_teacher
from teachers.radio import network
from teachers.radio.config import RadioConfig, RadioSizes

CONFIG = RadioConfig()
SIZES = RadioSizes(blocks=2, heads=4, mlp=128)


@pytest.fixture(scope="module")
def teacher():
    return build_teacher(CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small network as transformers saves it: under the names of the original code, the joint projection in one piece."""
    network.load(RadioConfig(seed=3)).save_pretrained(tmp_path)
    return tmp_path


def folder_config(folder: Path, **fields) -> RadioConfig:
    return RadioConfig(weights="somebody/radio", folder=str(folder), channels=32, shortest_edge=128, dtype="float32", **fields)


def original_config(folder: Path, model: str = "vit_base_patch16_224") -> None:
    (folder / "config.json").write_text(json.dumps({"args": {"model": model}, "architectures": ["RADIOModel"]}))


def change_tensors(folder: Path, **tensors: torch.Tensor | None) -> None:
    state = load_file(folder / "model.safetensors") | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({name: value for name, value in state.items() if value is not None}, folder / "model.safetensors")


def test_the_maps_of_a_folder_are_those_of_transformers(folder, pictures):
    reference = RadioModel.from_pretrained(folder).eval()
    assert any(name.startswith("radio_model.model.blocks.0.attn.qkv") for name in load_file(folder / "model.safetensors"))
    maps = build_teacher(folder_config(folder)).features(pictures, [None] * 3)
    for image, ours in zip(pictures, maps, strict=True):
        pixels_13HW = network.preprocess(image, 128, 16)
        with torch.inference_mode():
            theirs_1PC = reference(pixels_13HW).features
        h, w = (side // 16 for side in pixels_13HW.shape[2:])
        assert ours.shape == (32, h, w)
        np.testing.assert_array_equal(ours, theirs_1PC[0].T.reshape(32, h, w).numpy())


def test_preprocessing_is_the_published_processor_and_the_nearest_size(pictures):
    processor = CLIPImageProcessorPil(do_center_crop=False, do_normalize=False, do_resize=True, size={"shortest_edge": 100})
    for image in pictures:
        theirs = torch.from_numpy(np.asarray(processor(image, return_tensors="np")["pixel_values"]))
        size = tuple(max(round(side / 16) * 16, 16) for side in theirs.shape[2:])
        theirs = F.interpolate(theirs, size, mode="bilinear", align_corners=False)
        ours = network.preprocess(image, 100, 16)
        assert ours.shape == theirs.shape and min(ours.shape[2:]) == 96
        assert (ours - theirs).abs().max() < 1e-6


def test_a_photograph_of_the_usual_size_gives_a_sixteenth_of_its_input():
    assert network.scaled(480, 640, 768) == (768, 1024)
    assert network.scaled(640, 427, 768) == (1151, 768)
    assert [network.nearest(side, 16) for side in (1151, 768, 5, 24, 40)] == [1152, 768, 16, 32, 32]


def test_a_map_keeps_rows_and_columns_apart(teacher, pictures):
    (wide,), (turned,) = (teacher.features([image], [None]) for image in (pictures[1], pictures[1].transpose(1, 0, 2).copy()))
    assert wide.shape == (32, 8, 13) and turned.shape == (32, 13, 8)


def test_aligned_corners_put_the_corners_of_the_table_onto_those_of_the_grid():
    aligned = network.load(RadioConfig(aligned_corners=True)).embeddings
    table_SSC = aligned.position_embedding[0].unflatten(0, (32, 32)).numpy()
    found_hwC = aligned._interpolate_position_embedding((5, 9), torch.float32)[0].unflatten(0, (5, 9)).numpy()
    at = np.linspace(0, 31, 9)
    along = np.stack([np.stack([np.interp(at, range(32), row) for row in channel]) for channel in table_SSC.transpose(2, 0, 1)])
    both = np.stack([np.stack([np.interp(at, range(32), column) for column in channel.T]).T for channel in along])
    np.testing.assert_allclose(found_hwC, both.transpose(1, 2, 0)[:5], atol=1e-5)


def test_how_the_table_is_resized_moves_the_features(teacher, pictures):
    (aligned,) = build_teacher(RadioConfig(aligned_corners=True)).features(pictures[1:2], [None])
    (other,) = teacher.features(pictures[1:2], [None])
    assert np.abs(aligned - other).max() > 0.1


def test_random_features_are_of_unit_size_and_depend_on_picture_and_place(teacher, pictures):
    features = teacher.features(pictures, [(8, 8)] * 3)
    values_NCHW = np.stack(features)
    assert 0.5 < values_NCHW.std() < 2
    assert values_NCHW.std(axis=(0, 2, 3)).min() > 0.15
    assert values_NCHW.std(axis=0).mean() > 0.3
    again = build_teacher(RadioConfig()).features(pictures, [(8, 8)] * 3)
    np.testing.assert_array_equal(values_NCHW, np.stack(again))
    other = build_teacher(RadioConfig(seed=1)).features(pictures, [(8, 8)] * 3)
    assert np.abs(values_NCHW - np.stack(other)).max() > 0.5


def test_half_precision_stays_near_full(teacher, pictures):
    rough, exact = (made.features(pictures[:1], [None])[0] for made in (build_teacher(RadioConfig(dtype="bfloat16")), teacher))
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.2


def test_the_original_config_names_its_transformer(folder, pictures):
    original_config(folder, "vit_giant_of_tomorrow")
    with pytest.raises(ConfigError, match=r"vit_giant_of_tomorrow, known are .*vit_large_patch16_224"):
        build_teacher(folder_config(folder))
    original_config(folder, "vit_large_patch16_224")
    with pytest.raises(ConfigError, match=r"sizes\.heads: 4 -> 16"):
        build_teacher(folder_config(folder, sizes=SIZES))


def test_the_original_config_gives_the_network_of_transformers_own(tmp_path, pictures):
    sizes = RadioSizes(blocks=1, heads=12, mlp=100)
    network.load(RadioConfig(sizes=sizes, channels=96)).save_pretrained(tmp_path)
    config = RadioConfig(weights="somebody/radio", folder=str(tmp_path), channels=96, shortest_edge=128, dtype="float32")
    (saved,) = build_teacher(config).features(pictures[:1], [None])
    original_config(tmp_path, "vit_base_patch16_224")
    (original,) = build_teacher(config).features(pictures[:1], [None])
    np.testing.assert_array_equal(saved, original)


def test_another_size_than_the_configs_is_refused(folder):
    with pytest.raises(ConfigError, match=r"sizes\.blocks: 3 -> 2"):
        build_teacher(folder_config(folder, sizes=SIZES.model_copy(update={"blocks": 3})))
    build_teacher(folder_config(folder, sizes=SIZES))


def test_tensors_that_do_not_fit_are_named(folder):
    change_tensors(folder, radio_model__feature_normalizer__mean=torch.zeros(32))
    with pytest.raises(DataError, match=r"unexpected: radio_model\.feature_normalizer\.mean"):
        build_teacher(folder_config(folder))
    change_tensors(folder, radio_model__feature_normalizer__mean=None, radio_model__model__blocks__0__attn__proj__bias=None)
    with pytest.raises(DataError, match=r"missing: encoder\.layer\.0\.attention\.o_proj\.bias"):
        build_teacher(folder_config(folder))
    change_tensors(folder, radio_model__model__patch_generator__pos_embed=None)
    with pytest.raises(DataError, match=r"not RADIO's: there is no .*position_embedding"):
        build_teacher(folder_config(folder))


def test_what_belongs_to_no_spatial_feature_may_be_there_or_not(folder, pictures):
    (before,) = build_teacher(folder_config(folder)).features(pictures[:1], [None])
    change_tensors(folder, radio_model__inter_feature_normalizer__alphas=torch.zeros(2), radio_model__summary_idxs=None)
    (after,) = build_teacher(folder_config(folder)).features(pictures[:1], [None])
    np.testing.assert_array_equal(before, after)


def test_the_large_preset_is_a_vit_large():
    config = RadioConfig(weights="nvidia/RADIO-L")
    assert config.feature_channels == 1024 and config.aligned_corners and config.dtype == "bfloat16"
    assert config.sizes is not None
    with torch.device("meta"):
        blocks = RadioModel(network.architecture(config.sizes, 1024, prefix=16, side=128)).encoder.layer
    parameters = sum(p.numel() for name, p in blocks.named_parameters() if "layer_scale" not in name)
    assert parameters == 24 * (12 * 1024**2 + 13 * 1024)  # 4 C^2 of attention and 8 C^2 of MLP a block, biases and norms


def test_radio_is_no_segmenter():
    with pytest.raises(ConfigError, match="finds no regions"):
        build_segmenter(CONFIG)
