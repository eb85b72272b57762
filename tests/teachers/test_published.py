"""Our tables of architectures against the configs that the authors published, and one against their published numbers."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import Sam2Model

from teachers import mask2former, sam2
from teachers.config import Mask2FormerConfig, Sam2Config

HIERA_DEFAULTS = {
    "stages": [2, 3, 16, 3],
    "global_att_blocks": [12, 16, 20],
    "window_spec": [8, 4, 14, 7],
    "window_pos_embed_bkg_spatial_size": [14, 14],
}


@pytest.mark.sample
@pytest.mark.parametrize(("name", "letter"), [("tiny", "t"), ("small", "s"), ("base-plus", "b+"), ("large", "l")])
def test_sam2_sizes_are_the_published_ones(teacher_configs: Path, name: str, letter: str):
    model = yaml.safe_load((teacher_configs / f"sam2.1_hiera_{letter}.yaml").read_text())["model"]
    trunk, neck = HIERA_DEFAULTS | model["image_encoder"]["trunk"], model["image_encoder"]["neck"]
    config = Sam2Config(weights=f"facebook/sam2.1-hiera-{name}")
    sizes = config.sizes
    assert list(sizes.widths) == neck["backbone_channel_list"][::-1]
    assert list(sizes.heads) == [trunk["num_heads"] * 2**stage for stage in range(4)]
    assert list(sizes.blocks) == trunk["stages"]
    assert list(sizes.global_blocks) == trunk["global_att_blocks"]
    assert list(sizes.windows) == trunk["window_spec"]
    assert list(sizes.position_grid) == trunk["window_pos_embed_bkg_spatial_size"]
    assert (config.image_size, config.channels) == (model["image_size"], neck["d_model"])
    with torch.device("meta"):
        network = Sam2Model(sam2.architecture(config, sizes))
    levels = network.vision_encoder(torch.empty(1, 3, 1024, 1024, device="meta")).fpn_hidden_states
    assert tuple(levels[-1].shape[1:]) == config.spec("sam2").shape


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(base[key], value) if isinstance(value, dict) and key in base else value for key, value in over.items()}
    return base | both


def read_detectron(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    parent = content.pop("_BASE_", None)
    # The two Swin files stand in a folder below their base.
    return merged(read_detectron(path.parent / Path(parent).name), content) if parent else content


@pytest.mark.sample
@pytest.mark.parametrize(
    ("name", "file"),
    [("tiny", "maskformer2_swin_tiny_bs16_50ep.yaml"), ("large", "maskformer2_swin_large_IN21k_384_bs16_100ep.yaml")],
)
def test_mask2former_sizes_are_the_published_ones(teacher_configs: Path, name: str, file: str):
    content = read_detectron(teacher_configs / file)
    swin, head, former = (content["MODEL"][part] for part in ("SWIN", "SEM_SEG_HEAD", "MASK_FORMER"))
    config = Mask2FormerConfig(weights=f"facebook/mask2former-swin-{name}-coco-panoptic")
    sizes = config.sizes
    assert (sizes.width, list(sizes.blocks), list(sizes.heads)) == (swin["EMBED_DIM"], swin["DEPTHS"], swin["NUM_HEADS"])
    assert sizes.window == swin["WINDOW_SIZE"]
    assert (sizes.labels, sizes.pixel_layers) == (head["NUM_CLASSES"], head["TRANSFORMER_ENC_LAYERS"])
    assert (sizes.queries, sizes.query_layers) == (former["NUM_OBJECT_QUERIES"], former["DEC_LAYERS"] - 1)
    assert (sizes.query_mlp, sizes.decoder_heads) == (former["DIM_FEEDFORWARD"], former["NHEADS"])
    assert config.channels == head["MASK_DIM"] == head["CONVS_DIM"] == former["HIDDEN_DIM"]
    assert config.min_score == former["TEST"]["OBJECT_MASK_THRESHOLD"]
    assert config.min_overlap == former["TEST"]["OVERLAP_THRESHOLD"]
    with torch.device("meta"):
        network = mask2former.PanopticNetwork(mask2former.architecture(config, sizes))
    assert network.class_predictor.out_features == 134
    assert network.model.pixel_level_module.decoder.mask_projection.out_channels == 256


@pytest.mark.weights
def test_sam2_tiny_answers_as_published(teacher_configs: Path):
    """transformers' own expected scores for a click on the truck. Its processor rounds the resized picture to bytes."""
    if "SAILYARD_WEIGHTS" not in os.environ:
        pytest.skip("SAILYARD_WEIGHTS names no folder of checkpoints")
    folder = f"{os.environ['SAILYARD_WEIGHTS']}/sam2.1-hiera-tiny"
    network = sam2.load(Sam2Config(weights="facebook/sam2.1-hiera-tiny", folder=folder))
    with Image.open(teacher_configs.parent / "teacher_reference" / "truck.jpg") as truck:
        click = torch.tensor([500 / truck.width, 375 / truck.height]) * 1024
        squashed = truck.convert("RGB").resize((1024, 1024), Image.Resampling.BILINEAR)
    answer = network(sam2.preprocess(np.array(squashed), 1024), input_points=click[None, None, None])
    scores = answer.iou_scores.flatten().sort(descending=True).values
    torch.testing.assert_close(scores, torch.tensor([0.9547, 0.4932, 0.0427]), atol=1e-3, rtol=0)
