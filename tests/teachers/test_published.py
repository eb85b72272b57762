"""Our tables of architectures against the configs that the authors published, and one against their published numbers."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import Sam2Model

from teachers import pixels
from teachers.base import Proposal
from teachers.config import Mask2FormerConfig, Sam2Config
from teachers.mask2former import network as mask2former
from teachers.mask2former.config import PRESETS, ResNet, Swin
from teachers.sam2 import network as sam2
from teachers.sam2.segmenter import Sam2Segmenter

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
    stages = sam2.stages(network, torch.empty(1, 3, 1024, 1024, device="meta"))
    shapes = {layer: tuple(sam2.level(network, stages, layer).shape[1:]) for layer in sam2.LAST_STAGE}
    assert shapes == {"image_embed": (256, 64, 64), "high_res_1": (64, 128, 128), "high_res_0": (32, 256, 256)}


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
    [
        ("facebook/mask2former-swin-tiny-coco-panoptic", "maskformer2_swin_tiny_bs16_50ep.yaml"),
        ("facebook/mask2former-swin-large-coco-panoptic", "maskformer2_swin_large_IN21k_384_bs16_100ep.yaml"),
        ("mask2former/coco/panoptic/maskformer2_R50_bs16_50ep", "maskformer2_R50_bs16_50ep.yaml"),
    ],
)
def test_mask2former_sizes_are_the_published_ones(teacher_configs: Path, name: str, file: str):
    content = read_detectron(teacher_configs / file)
    head, former = (content["MODEL"][part] for part in ("SEM_SEG_HEAD", "MASK_FORMER"))
    config = Mask2FormerConfig(weights=name)
    sizes = config.sizes
    assert_backbone(sizes.backbone, content["MODEL"])
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


def assert_backbone(backbone: Swin | ResNet, model: dict[str, Any]) -> None:
    if isinstance(backbone, ResNet):
        depths = {50: (3, 4, 6, 3)}
        assert (backbone.width, backbone.blocks) == (model["RESNETS"]["STEM_OUT_CHANNELS"], depths[model["RESNETS"]["DEPTH"]])
        return
    swin = model["SWIN"]
    assert (backbone.width, backbone.window) == (swin["EMBED_DIM"], swin["WINDOW_SIZE"])
    assert (list(backbone.blocks), list(backbone.heads)) == (swin["DEPTHS"], swin["NUM_HEADS"])


@pytest.mark.parametrize("name", sorted(PRESETS.keys() - {"random", "taught"}))
def test_each_name_of_mask2former_is_a_network_of_the_size_that_it_says(name: str):
    """Parameters in millions, as the paper has them in its tables for COCO (panoptic)."""
    config = Mask2FormerConfig(weights=name)
    millions = {"tiny": 47, "small": 69, "base": 107, "large": 216, "resnet-50": 44, "R50": 44}
    with torch.device("meta"):
        network = mask2former.PanopticNetwork(mask2former.architecture(config, config.sizes))
    found = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert round(found) == next(count for part, count in millions.items() if part in name)
    assert config.task in name and config.sizes.labels == (80 if config.task == "instance" else 133)


BOXES = {
    "truck": [[75, 275, 1725, 850], [425, 600, 700, 875], [1375, 550, 1650, 800], [1240, 675, 1400, 750]],
    "groceries": [[450, 170, 520, 350], [350, 190, 450, 350], [500, 170, 580, 350], [580, 170, 640, 350]],
}


def squashed(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The picture as the processor of transformers resizes it, in bytes, and what XY in pixels must be multiplied with."""
    with Image.open(path) as opened:
        image = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)[None]
    square = torch.nn.functional.interpolate(image, size=(1024, 1024), mode="bilinear", antialias=True)
    return square[0].permute(1, 2, 0).numpy(), np.array([1024 / image.shape[3], 1024 / image.shape[2]])


@pytest.fixture(params=["sam2.1-hiera-tiny", "sam2.1_hiera_tiny.pt"])
def sam2_tiny(request: pytest.FixtureRequest) -> Sam2Config:
    """The real checkpoint, as a folder of Hugging Face and as Meta's file."""
    path = Path(os.environ.get("SAILYARD_WEIGHTS", "nowhere")) / request.param
    if not path.exists():
        pytest.skip(f"SAILYARD_WEIGHTS names no folder with {request.param}")
    return Sam2Config(weights="facebook/sam2.1-hiera-tiny", folder=str(path), dtype="float32")


@pytest.mark.weights
def test_sam2_tiny_scores_as_published(teacher_configs: Path, sam2_tiny: Sam2Config):
    """transformers' own expected scores for a click and for boxes."""
    reference, segmenter = teacher_configs.parent / "teacher_reference", Sam2Segmenter(sam2_tiny)
    truck, scale = squashed(reference / "truck.jpg")
    click = [[np.array([500, 375]) * scale]]
    found = {
        "point [500,375] label 1, multimask: sorted iou": sorted(scores(segmenter.prompted(truck, points=click)))[::-1],
        "single mask: iou": scores(segmenter.prompted(truck, points=click, several=False)),
    }
    for name, boxes in BOXES.items():
        image, scale = squashed(reference / f"{name}.jpg")
        line = f"boxes {name} {json.dumps(boxes, separators=(',', ':'))}: iou"
        found[line] = scores(segmenter.prompted(image, boxes=np.array(boxes) * np.tile(scale, 2), several=False))
    expected = json.loads((reference / "expected_slices.json").read_text())["sam2"]
    for name, values in found.items():
        assert values == pytest.approx(expected[name], abs=1e-3), name


def scores(proposals: list[Proposal]) -> list[float]:
    return [one.score for one in proposals]


@pytest.mark.weights
def test_sam2_tiny_features_give_the_published_logits(teacher_configs: Path, sam2_tiny: Sam2Config):
    """A corner of the masks that the decoder of transformers makes of our three maps."""
    reference, model = teacher_configs.parent / "teacher_reference", sam2.load(sam2_tiny)
    truck, scale = squashed(reference / "truck.jpg")
    stages = sam2.stages(model, sam2.preprocess(truck, 1024))
    levels = [sam2.level(model, stages, layer) for layer in ("high_res_0", "high_res_1", "image_embed")]
    click = torch.tensor(np.array([500, 375]) * scale, dtype=torch.float32)[None, None, None]
    several = model(image_embeddings=levels, input_points=click)
    single = model(image_embeddings=levels, input_points=click, multimask_output=False)
    found = {
        "best mask logits[:3,:3]": several.pred_masks[0, 0, several.iou_scores.argmax(), :3, :3],
        "single mask logits[:3,:3]": single.pred_masks[0, 0, 0, :3, :3],
    }
    slices = json.loads((reference / "expected_slices.json").read_text())["sam2"]
    torch.testing.assert_close(found, {name: torch.tensor(slices[name]) for name in found}, atol=1e-3, rtol=1e-3)


@pytest.mark.weights
def test_mask2former_swin_small_answers_as_published(teacher_configs: Path):
    """transformers' own expected values for the two cats, COCO val2017 000000039769, squashed to 384 x 384."""
    if "SAILYARD_WEIGHTS" not in os.environ:
        pytest.skip("SAILYARD_WEIGHTS names no folder of checkpoints")
    folder = Path(os.environ["SAILYARD_WEIGHTS"])
    if not (folder / "000000039769.jpg").exists():
        pytest.skip(f"the picture 000000039769.jpg of COCO val2017 is not in {folder}")
    name = "mask2former-swin-small-coco-instance"
    network = mask2former.load(Mask2FormerConfig(weights=f"facebook/{name}", folder=str(folder / name)))
    with Image.open(folder / "000000039769.jpg") as cats:
        squashed = np.array(cats.convert("RGB").resize((384, 384), Image.Resampling.BILINEAR))
    prepared = pixels.normalise(pixels.to_unit(squashed))
    answer = network.model(prepared, output_hidden_states=True)
    classes, masks = network(prepared)
    found = {
        "encoder_last_hidden_state[0,0,:3,:3]": answer.encoder_last_hidden_state[0, 0],
        "pixel_decoder_last_hidden_state[0,0,:3,:3]": answer.pixel_decoder_last_hidden_state[0, 0],
        "transformer_decoder_last_hidden_state[0,:3,:3]": answer.transformer_decoder_last_hidden_state[0],
        "masks_queries_logits[0,0,:3,:3]": masks[0, 0],
        "class_queries_logits[0,:3,:3]": classes[0],
    }
    slices = json.loads((teacher_configs.parent / "teacher_reference" / "expected_slices.json").read_text())["mask2former"]
    expected = {name: torch.tensor(slices[name]) for name in found}
    torch.testing.assert_close({name: values[:3, :3] for name, values in found.items()}, expected, atol=1e-3, rtol=1e-3)
