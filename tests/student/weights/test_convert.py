"""Checkpoints in the layout of the release, in and out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas.errors import ConfigError, DataError
from student.model import PixelSail
from student.weights import convert
from tests.student.micro import micro_config, micro_vocabulary

TEACHERS = ("mask2former_distill_linear.weight", "sam2_model.trunk.pos_embed", "radio_distill_linear.bias")


def made(seed: int, **over) -> PixelSail:
    return PixelSail(micro_config(**over), micro_vocabulary(), torch.Generator().manual_seed(seed))


def same(first: PixelSail, second: PixelSail) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", ["student.safetensors", "student.pth"])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_comes_back(tmp_path, name, tied):
    student, other = made(1, tie_embeddings=tied), made(2, tie_embeddings=tied)
    convert.save(student, tmp_path / name)
    assert convert.load(other, tmp_path / name) == convert.Loaded(len(student.state_dict()), 0)
    assert same(student, other)


def test_names_and_shapes_are_those_of_the_reference(tmp_path):
    student = made(1, hidden=1040, heads=4, head_dim=260, mask_width=None, mask_stride=2)
    convert.save(student, tmp_path / "student.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "student.safetensors").items()}
    d, s, wide, rows = 1024, 12, 1040, len(micro_vocabulary())
    layer = "single_transformer.model.layers.1"
    wanted = {
        "single_transformer.model.embed_tokens.weight": (rows, wide),
        "single_transformer.lm_head.weight": (rows, wide),
        "single_transformer.model.norm.weight": (wide,),
        "single_transformer.model.vis_embed.weight": (wide, 3 * 16 * 16),
        "single_transformer.model.vp_embed.weight": (wide, wide),
        f"{layer}.self_attn.q_proj.bias": (wide,),
        f"{layer}.self_attn.v_proj.weight": (520, wide),
        f"{layer}.self_attn.o_proj.weight": (wide, wide),
        f"{layer}.mlp.down_proj.weight": (wide, 64),
        f"{layer}.post_attention_layernorm.weight": (wide,),
        "image_feature_pre_projector.0.weight": (wide, wide),
        "image_feature_pre_projector.2.weight": (d, wide),
        "seg_token_projector.2.weight": (s, d),
        "upsample_blocks.2.0.weight": (d, d, 2, 2),
        "upsample_blocks.2.2.depthwise.weight": (d, 1, 3, 3),
        "upsample_blocks.2.2.pointwise.bias": (d,),
        "upsample_blocks.2.3.ln.weight": (d,),
        "image_feature_projector.2.bias": (s,),
    }
    assert wanted.items() <= shapes.items()
    assert len(shapes) == 3 + 2 + 2 * 12 + 4 + 4 + 3 * 8 + 4


def wrapped(state: dict[str, torch.Tensor], how: str) -> object:
    named = {f"module.{name}": tensor for name, tensor in state.items()}
    match how:
        case "mmengine":
            return {"meta": {"epoch": 1}, "state_dict": state}
        case "deepspeed":
            return {"module": named, "global_steps": 7, "ds_version": "0.1"}
        case "parallel":
            return named
        case _:
            return {"model": {"state_dict": named}}


@pytest.mark.parametrize("how", ["mmengine", "deepspeed", "parallel", "twice"])
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappings_come_off_and_teachers_are_passed_over(tmp_path, how, zipped):
    student, other = made(1), made(2)
    state = {**student.state_dict(), **{name: torch.zeros(2) for name in TEACHERS}}
    torch.save(wrapped(state, how), tmp_path / "iter_1.pth", _use_new_zipfile_serialization=zipped)
    assert convert.load(other, tmp_path / "iter_1.pth").ignored == len(TEACHERS)
    assert same(student, other)


def test_a_folder_of_many_files_is_read_by_its_index(tmp_path):
    student, other = made(1), made(2)
    state = student.state_dict()
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2])):
        torch.save({name: state[name] for name in part}, tmp_path / f"pytorch_model-{number}.bin")
    places = {name: f"pytorch_model-{number % 2}.bin" for number, name in enumerate(names)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    torch.save({"strange": torch.zeros(1)}, tmp_path / "training_args.bin")
    convert.load(other, tmp_path)
    assert same(student, other)


def test_a_tensor_stands_in_one_file(tmp_path):
    state = made(1).state_dict()
    for name in ("a.pth", "b.pth"):
        torch.save(state, tmp_path / name)
    with pytest.raises(DataError, match=r"b\.pth: .* stands in two files"):
        convert.load(made(2), tmp_path)


@pytest.mark.parametrize("changed", [torch.Tensor.to_sparse, lambda tensor: tensor.to("meta")])
def test_tensors_without_plain_numbers_are_named(tmp_path, changed):
    name = "seg_token_projector.2.weight"
    state = made(1).state_dict()
    torch.save(state | {name: changed(state[name])}, tmp_path / "odd.pth")
    with pytest.raises(DataError, match=f"not of floating point: {name}"):
        convert.load(made(2), tmp_path / "odd.pth")


def test_half_precision_is_widened(tmp_path):
    student, other = made(1).to(torch.bfloat16), made(2)
    student.single_transformer.model.vp_embed.float()
    convert.save(student, tmp_path / "half.pth")
    convert.load(other, tmp_path / "half.pth")
    assert {tensor.dtype for tensor in other.state_dict().values()} == {torch.float32}
    assert same(student.float(), other)


def test_what_does_not_fit_is_named_in_a_line(tmp_path):
    state = {name: tensor.clone() for name, tensor in made(1).state_dict().items()}
    del state["seg_token_projector.2.bias"]
    state["single_transformer.lm_head.weight"] = state["single_transformer.lm_head.weight"][:-1].clone()
    save_file(state | {"upsample_blocks.9.0.bias": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(DataError) as told:
        convert.load(made(2), tmp_path / "odd.safetensors")
    rows = len(micro_vocabulary())
    assert "missing: seg_token_projector.2.bias" in str(told.value)
    assert "unexpected: upsample_blocks.9.0.bias" in str(told.value)
    assert f"single_transformer.lm_head.weight {rows - 1}×32 for {rows}×32" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_head_of_its_own_is_no_tied_one(tmp_path):
    convert.save(made(1), tmp_path / "untied.safetensors")
    with pytest.raises(DataError, match=r"Set student\.tie_embeddings = false"):
        convert.load(made(2, tie_embeddings=True), tmp_path / "untied.safetensors")


def test_two_transformers_are_one_too_many(tmp_path):
    state = made(1).state_dict()
    both = {f"{side}.{name}": tensor.clone() for side in ("student", "ema") for name, tensor in state.items()}
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(DataError, match="transformers under 'ema.', 'student.'"):
        convert.load(made(2), tmp_path / "both.safetensors")


class Evil:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"state_dict": Evil(tmp_path / "trace")}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match="not a checkpoint of plain tensors") as told:
        convert.load(made(1), tmp_path / "evil.pth")
    assert not (tmp_path / "trace").exists()
    assert "\n" not in str(told.value)


def itself() -> dict:
    ring: dict = {}
    ring["state_dict"] = ring
    return ring


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {3: torch.zeros(1)}, itself()])
def test_a_checkpoint_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(DataError, match="holds tensors by name, this one does not"):
        convert.load(made(1), tmp_path / "other.pth")


@pytest.mark.parametrize("data", [b"", b"no checkpoint", b"PK\x03\x04" + bytes(60)])
@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_a_file_of_rubbish_is_told_in_a_line(tmp_path, data, name):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match="not a ") as told:
        convert.load(made(1), tmp_path / name)
    assert "\n" not in str(told.value)


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.pth"):
        convert.load(made(1), tmp_path / "nowhere.pth")
    with pytest.raises(ConfigError, match="Name it .safetensors or .pth"):
        convert.save(made(1), tmp_path / "student.onnx")
