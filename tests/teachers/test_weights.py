import hashlib
import json
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas.errors import ConfigError, DataError
from teachers import weights
from teachers.build import build_segmenter, build_teacher
from teachers.config import Mask2FormerConfig, Sam2Config, TeacherConfig
from teachers.mask2former import network as mask2former
from teachers.mask2former.config import ResNet
from teachers.sam2 import network as sam2

RANDOM = [Sam2Config(), Mask2FormerConfig()]
GRIDS = [(16, 16)] * 3

# transformers' name -> the official one, written down on its own: what SAM 2's `names.from_official` must undo.
TO_OFFICIAL = [
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"layer_norm(\d|_final_attn)", r"norm\1"),
    (r"o_proj", "out_proj"),
    (r"\.mlp\.proj_in", ".mlp.layers.0"),
    (r"\.mlp\.proj_out", ".mlp.layers.1"),
    (r"((?:head|mlps\.\d))\.layers\.0", r"\1.layers.1"),
    (r"((?:head|mlps\.\d))\.proj_in", r"\1.layers.0"),
    (r"((?:head|mlps\.\d))\.proj_out", r"\1.layers.2"),
]


def official_state(config: Sam2Config) -> dict[str, torch.Tensor]:
    """The random network as Meta would publish it, with what only video needs."""
    state = sam2.load(config).state_dict()
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    official = {"maskmem_tpos_enc": torch.zeros(7), "memory_attention.norm.weight": torch.zeros(4), "no_obj_ptr": torch.ones(1)}
    for name, tensor in state.items():
        for pattern, replacement in TO_OFFICIAL:
            name = re.sub(pattern, replacement, name)
        official[name] = tensor
    del official["shared_image_embedding.positional_embedding"]
    for index, row in enumerate(official.pop("sam_prompt_encoder.point_embed.weight").split(1)):
        official[f"sam_prompt_encoder.point_embeddings.{index}.weight"] = row.clone()
    return official


def published(config: TeacherConfig, folder: Path) -> TeacherConfig:
    """The same architecture as `config`, its weights to be read from `folder`."""
    return config.model_copy(update={"weights": "somebody/model", "folder": str(folder)})


def assert_same_features(config: TeacherConfig, other: TeacherConfig, pictures: list[np.ndarray]) -> None:
    ours, theirs = (build_teacher(each).features(pictures, GRIDS) for each in (config, other))
    np.testing.assert_array_equal(np.stack(ours), np.stack(theirs))


def random_states() -> list:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


@pytest.mark.parametrize("config", RANDOM, ids=lambda config: config.kind)
def test_nobody_elses_random_numbers_change(config, pictures):
    before = random_states()
    build_teacher(config).features(pictures, GRIDS)
    build_segmenter(config).segments(pictures[0])
    assert random_states() == before


def test_the_seed_alone_decides_in_every_process(pictures, tmp_path):
    np.savez(tmp_path / "pictures.npz", *pictures)
    code = f"""
import hashlib, numpy as np, torch
torch.manual_seed(123)
from teachers.build import build_teacher
from teachers.config import Mask2FormerConfig, Sam2Config
pictures = list(np.load({str(tmp_path / "pictures.npz")!r}).values())
for config in (Sam2Config(), Mask2FormerConfig()):
    features = build_teacher(config).features(pictures, {GRIDS})
    print(hashlib.sha256(np.stack(features).tobytes()).hexdigest())
"""
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    here = [np.stack(build_teacher(config).features(pictures, GRIDS)) for config in RANDOM]
    assert there == [hashlib.sha256(features.tobytes()).hexdigest() for features in here]


def test_another_seed_is_another_network():
    assert weights.digest(sam2.load(Sam2Config(seed=1))) != weights.digest(sam2.load(Sam2Config()))


def test_an_official_checkpoint_gives_the_same_network(pictures, tmp_path):
    source, path = Sam2Config(seed=3), tmp_path / "sam2.1.pt"
    torch.save({"model": official_state(source)}, path)
    assert_same_features(published(source, path), source, pictures)
    loaded, original = sam2.load(published(source, path)).state_dict(), sam2.load(source).state_dict()
    different = [name for name, tensor in original.items() if not torch.equal(tensor, loaded[name])]
    assert different == ["shared_image_embedding.positional_embedding"], "official SAM 2 has one embedding of places, not two"


def test_an_official_checkpoint_that_does_not_fit_names_its_tensors(tmp_path):
    source, path = Sam2Config(), tmp_path / "sam2.1.pt"
    state = official_state(source)
    del state["no_mem_embed"]
    state["image_encoder.trunk.extra"] = torch.zeros(1)
    state["image_encoder.trunk.pos_embed"] = torch.zeros(1, 16, 3, 3)
    torch.save({"model": state}, path)
    with pytest.raises(DataError) as caught:
        sam2.load(published(source, path))
    assert "missing: no_memory_embedding" in str(caught.value)
    assert "unexpected: vision_encoder.backbone.extra" in str(caught.value)
    assert "of another shape: vision_encoder.backbone.pos_embed" in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_official_checkpoint_needs_sizes(tmp_path):
    torch.save({"model": {}}, tmp_path / "sam2.1.pt")
    config = Sam2Config(weights="somebody/sam2", folder=str(tmp_path / "sam2.1.pt"))
    with pytest.raises(ConfigError, match="sizes"):
        sam2.load(config)


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    target, path = tmp_path / "touched", tmp_path / "sam2.1.pt"
    torch.save({"model": {"no_mem_embed": Evil(target)}}, path)
    with pytest.raises(DataError, match="plain tensors"):
        sam2.load(published(Sam2Config(), path))
    assert not target.exists()
    path.write_bytes(pickle.dumps(Evil(target), protocol=2))
    with pytest.raises(DataError, match="plain tensors"):
        sam2.load(published(Sam2Config(), path))
    assert not target.exists()


@pytest.mark.parametrize("content", [{"weights": {}}, [1, 2], {"model": {"a": 1}}], ids=["other key", "list", "no tensor"])
def test_a_checkpoint_of_another_form_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "sam2.1.pt")
    with pytest.raises(DataError, match="'model'"):
        sam2.load(published(Sam2Config(), tmp_path / "sam2.1.pt"))


def test_a_video_folder_of_sam2_gives_the_same_network(pictures, tmp_path):
    """The published folders hold the video model: more tensors, and a config.json that says so."""
    source = Sam2Config(seed=3)
    sam2.load(source).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    extra = {"memory_encoder.projection.weight": torch.zeros(2), "object_pointer_proj.proj_in.bias": torch.zeros(2)}
    save_file(state | extra, tmp_path / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"model_type": "sam2_video", "num_maskmem": 7}))
    assert_same_features(published(source, tmp_path), source, pictures)
    unsaid = published(source, tmp_path).model_copy(update={"sizes": None})
    assert weights.digest(sam2.load(unsaid)) == weights.digest(sam2.load(source))


def save_mask2former(config: Mask2FormerConfig, folder: Path) -> None:
    """As it is published: older names, the training loss's buffer and Swin's index, and without the norm that is not used."""
    mask2former.load(config).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    assert any("attention.self.query" in name for name in state)
    state = {name: tensor for name, tensor in state.items() if ".swin.layernorm." not in name}
    block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    spare = {"criterion.empty_weight": torch.ones(9), block: torch.zeros(16, 16, dtype=torch.int64)}
    save_file(state | spare, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_published_folder_of_mask2former_gives_the_same_network(pictures, tmp_path):
    source = Mask2FormerConfig(seed=3)
    save_mask2former(source, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    names = {str(label): f"class {label}" for label in range(8)}
    (tmp_path / "config.json").write_text(json.dumps(content | {"id2label": names}))
    config = published(source, tmp_path)
    assert_same_features(config, source, pictures)
    theirs, ours = (build_segmenter(each).segments(pictures[0]) for each in (config, source))
    assert [one.score for one in theirs] == [one.score for one in ours]
    assert all(re.fullmatch(r"class \d", one.category) for one in theirs)


RESNET = Mask2FormerConfig(seed=3, sizes=RANDOM[1].sizes.model_copy(update={"backbone": ResNet(width=8, blocks=(1, 2, 1, 1))}))


def test_a_folder_with_a_resnet_gives_the_same_network(pictures, tmp_path):
    mask2former.load(RESNET).save_pretrained(tmp_path)
    assert_same_features(published(RESNET, tmp_path), RESNET, pictures)


def test_a_folder_of_before_safetensors_gives_the_same_network(pictures, tmp_path):
    """Some of the published ones hold nothing else."""
    source = Mask2FormerConfig(seed=3)
    save_mask2former(source, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same_features(published(source, tmp_path), source, pictures)
    torch.save(state | {"class_predictor.bias": Evil(tmp_path / "touched")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model\.bin: not a checkpoint of plain tensors"):
        mask2former.load(published(source, tmp_path))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downsample_in_bottleneck": True}, "a resnet backbone of this form"),
        ({"layer_type": "basic"}, "a resnet backbone of this form"),
        ({"depths": [1, 1, 1, 1]}, r"sizes.backbone.blocks: \[1, 2, 1, 1\] -> \[1, 1, 1, 1\]"),
        ({"model_type": "convnext"}, "a convnext backbone of this form"),
    ],
)
def test_a_folder_with_another_backbone_names_it(tmp_path, change, message):
    mask2former.load(RESNET).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["backbone_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        mask2former.load(published(RESNET, tmp_path))


def test_a_folder_with_another_network_names_the_difference(tmp_path):
    source = Sam2Config()
    sam2.load(source).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"channels: 64 -> 32"):
        sam2.load(published(source, tmp_path).model_copy(update={"channels": 64}))
    sizes = source.sizes.model_copy(update={"windows": (8, 4, 4, 4)})
    with pytest.raises(ConfigError, match=r"sizes.windows: \[8, 4, 4, 4\] -> \[8, 4, 8, 4\]"):
        sam2.load(published(source, tmp_path).model_copy(update={"sizes": sizes}))


def test_a_folder_with_a_tensor_too_few_is_refused(tmp_path):
    save_mask2former(Mask2FormerConfig(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["class_predictor.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"missing: class_predictor.bias\)"):
        mask2former.load(published(Mask2FormerConfig(), tmp_path))


@pytest.mark.parametrize("config", RANDOM, ids=lambda config: config.kind)
def test_weights_that_are_not_there_are_one_clear_error(config, tmp_path):
    load = sam2.load if config.kind == "sam2" else mask2former.load
    with pytest.raises(DataError, match=r"nowhere: no weights of somebody/model here\. Correct `folder`"):
        load(published(config, tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="hf download somebody/model"):
        load(config.model_copy(update={"weights": "somebody/model"}))
    with pytest.raises(DataError, match=r"config\.json: cannot read the published config"):
        load(published(config, tmp_path))


def test_a_folder_without_readable_tensors_is_refused(tmp_path):
    sam2.load(Sam2Config()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"not at all")
    with pytest.raises(DataError, match=r"model\.safetensors: not a safetensors file"):
        sam2.load(published(Sam2Config(), tmp_path))
    file.unlink()
    with pytest.raises(DataError, match="no safetensors file here"):
        sam2.load(published(Sam2Config(), tmp_path))


def test_a_damaged_checkpoint_loads_or_is_refused_in_one_line(tmp_path, rng):
    """Cut anywhere, or with any bit flipped, it ends in tensors or in a DataError, never in anything else."""
    path = tmp_path / "sam2.pt"
    torch.save({"model": {f"layer.{n}.weight": torch.zeros(3, 2) for n in range(4)}}, path)
    whole = path.read_bytes()
    for number in range(150):
        data = bytearray(whole[: rng.integers(1, len(whole))] if number % 3 == 0 else whole)
        data[rng.integers(0, len(data))] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(data)
        try:
            weights.read_official(path)
        except DataError as error:
            assert "\n" not in str(error)
