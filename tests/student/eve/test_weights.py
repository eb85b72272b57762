"""Weights of a student of EVEv2, in and out: the release's layout, the folder of EVEv2 itself, and that of a model of text."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas.errors import ConfigError, DataError
from schemas.storage import Folder
from student.config import BaseConfig, StudentConfig
from student.model import PixelSail
from student.sequence import collate, encode
from student.vocabulary import Vocabulary, added_tokens
from student.weights import base, convert, export
from tests.student.eve.micro import eve_config, eve_mixed, eve_student
from tests.student.micro import micro_config, micro_vocabulary
from tests.student.weights.qwen import ADDED, SIZES, write_qwen, write_tokenizer

ROOT = "single_transformer."
VP = f"{ROOT}model.vp_embed.weight"


def same(first: PixelSail, second: PixelSail) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def qwen_student(seed: int) -> PixelSail:
    return PixelSail(micro_config(), micro_vocabulary(), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["student.safetensors", "student.pth"])
def test_a_checkpoint_of_the_release_comes_back_with_what_nobody_reads(tmp_path, rng, name):
    student, other = eve_student(1), eve_student(2)
    state = student.state_dict() | {VP: torch.randn(32, 32), "sam2_model.trunk.pos_embed": torch.zeros(2)}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "iter_1.pth")
    assert convert.load(other, tmp_path / "iter_1.pth") == convert.Loaded(len(student.state_dict()), 1)
    batch = collate(eve_mixed(rng))
    assert torch.equal(student.states(batch), other.states(batch))
    convert.save(other, tmp_path / name)
    again = eve_student(3)
    convert.load(again, tmp_path / name)
    assert same(other, again)
    assert torch.equal(again.state_dict()[VP], state[VP])


def test_either_layout_is_refused_for_a_student_of_the_other(tmp_path):
    convert.save(eve_student(), tmp_path / "eve.pth")
    convert.save(qwen_student(0), tmp_path / "qwen.pth")
    with pytest.raises(DataError, match=r"EVEv2 layout: 30 tensors that a Qwen student has not.*\[student.eve\]") as told:
        convert.load(qwen_student(1), tmp_path / "eve.pth")
    with pytest.raises(DataError, match=r"no EVEv2 layout: neither a vision tower nor .* leave \[student.eve\] out"):
        convert.load(eve_student(1), tmp_path / "qwen.pth")
    assert "\n" not in str(told.value)
    assert convert.eve_tensors(qwen_student(0).state_dict()) == []


def test_what_does_not_fit_is_named_in_a_line(tmp_path):
    state = {name: tensor.clone() for name, tensor in eve_student().state_dict().items()}
    del state[f"{ROOT}model.layers.1.self_attn.moe_o_proj.weight"]
    state[f"{ROOT}model.layers.1.moe_norm.weight"] = torch.zeros(3)
    state[f"{ROOT}model.vision_tower.class_embedding"] = torch.zeros(31)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(DataError) as told:
        convert.load(eve_student(), tmp_path / "odd.safetensors")
    assert f"missing: {ROOT}model.layers.1.self_attn.moe_o_proj.weight" in str(told.value)
    assert f"unexpected: {ROOT}model.layers.1.moe_norm.weight" in str(told.value)
    assert f"{ROOT}model.vision_tower.class_embedding 31 for 32" in str(told.value)
    assert "\n" not in str(told.value)


def started(folder: Path, config: StudentConfig) -> tuple[PixelSail, Vocabulary, base.Started]:
    vocabulary = Vocabulary.from_qwen(folder, config.prompts, config.names_pictures)
    student = PixelSail(config, vocabulary, torch.Generator().manual_seed(1))
    return student, vocabulary, base.load(student, vocabulary, BaseConfig(weights="micro", folder=str(folder)), seed=0)


def fitting(**over) -> StudentConfig:
    return eve_config(**({"rope_theta": 5000.0, "norm_eps": 1e-5} | over))


def write_words(folder: Path) -> int:
    """Config and tokenizer of EVEv2; returns how many tokens there are."""
    sizes = {name: value for name, value in SIZES.items() if name != "rope_parameters"}
    published = {"model_type": "eve-qwen2", "rope_theta": 5000.0, "add_moe": True, "mm_hidden_size": 6}
    count = write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(sizes | published))
    return count


def write_eve(folder: Path) -> dict[str, torch.Tensor]:
    """The folder of EVEv2 itself, under its own names; returns its tensors."""
    rows = write_words(folder) + 12
    words = Vocabulary.from_qwen(folder, 3, pictures=False)
    state = PixelSail(fitting(), words, torch.Generator().manual_seed(5)).state_dict()
    tensors = {name.removeprefix(ROOT): tensor for name, tensor in state.items() if name.startswith(ROOT) and name != VP}
    tensors |= {name: torch.randn(rows, 32) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file(tensors, folder / "model.safetensors")
    return tensors


def test_a_student_starts_from_evev2(tmp_path):
    tensors = write_eve(tmp_path)
    student, vocabulary, told = started(tmp_path, fitting())
    state = student.state_dict()
    for name, tensor in tensors.items():
        if "embed_tokens" not in name and "lm_head" not in name:
            assert torch.equal(state[ROOT + name], tensor)
    assert torch.equal(state[f"{ROOT}lm_head.weight"], tensors["lm_head.weight"][: len(vocabulary)])
    assert {name for name in told.drawn if name.startswith(ROOT)} == {VP}


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("vision_tower.split_embedding", r"missing: single_transformer.model.vision_tower.split_embedding\)"),
        ("vision_tower.", r"missing: single_transformer.model.vision_tower.class_embedding, .* and 2 more\)"),
        ("moe_", r"missing: single_transformer.model.layers.0.moe_input_layernorm.weight, .* and 20 more\)"),
    ],
)
def test_half_of_evev2_is_refused(tmp_path, part, says):
    kept = {name: tensor for name, tensor in write_eve(tmp_path).items() if part not in name}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=says):
        started(tmp_path, fitting())


def test_the_vector_before_a_picture_has_two_names(tmp_path):
    """The release has one, EVEv2's own code another; who has both is asked which."""
    tensors = write_eve(tmp_path)
    first = tensors.pop("model.vision_tower.class_embedding")
    save_file(tensors | {"model.vision_tower.start_embedding": first}, tmp_path / "model.safetensors")
    student, _, _ = started(tmp_path, fitting())
    assert torch.equal(student.single_transformer.model.vision_tower.class_embedding, first)
    both = {f"model.vision_tower.{name}_embedding": first.clone() for name in ("start", "class")}
    save_file(tensors | both, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"unexpected: single_transformer.model.vision_tower.start_embedding"):
        started(tmp_path, fitting())


def test_a_student_starts_from_a_model_of_text_as_evev2_did(tmp_path):
    model = write_qwen(tmp_path)
    student, vocabulary, told = started(tmp_path, fitting())
    state = student.state_dict()
    twins = [name for name in state if "moe_" in name]
    assert len(twins) == 2 * 12
    assert all(torch.equal(state[name], state[name.replace("moe_", "")]) for name in twins)
    drawn = {name.split(".")[2] for name in told.drawn if name.startswith(ROOT)}
    assert drawn == {"vision_tower", "vp_embed"}
    batch = collate([encode(vocabulary, student.config, turns=[("What is red?", "A circle.")])])
    model.resize_token_embeddings(len(vocabulary))
    with torch.no_grad():
        wanted_RV = model(batch.tokens_R[None]).logits[0]
        torch.testing.assert_close(student.logits(student.states(batch)), wanted_RV, rtol=0, atol=1e-5)


def test_a_base_of_other_sizes_is_refused(tmp_path):
    write_eve(tmp_path)
    with pytest.raises(ConfigError, match=r"rope_theta = 10000\.0 where the base has 5000\.0"):
        started(tmp_path, eve_config(norm_eps=1e-5))
    says = r"norm_eps = 1e-06 .*; eve.channels = 7 where the base has 6. Set under .*: norm_eps = 1e-05, eve.channels = 6."
    with pytest.raises(ConfigError, match=says):
        started(tmp_path, fitting(norm_eps=1e-6, eve={"channels": 7, "side": 24}))
    with pytest.raises(DataError, match="EVEv2 layout"):
        started(tmp_path, micro_config(rope_theta=5000.0, norm_eps=1e-5))


def test_the_vocabulary_of_the_release_has_no_words_for_pictures(tmp_path):
    count = write_words(tmp_path)
    vocabulary = Vocabulary.from_qwen(tmp_path, 15, pictures=False)
    in_order = sorted(vocabulary.ids(), key=vocabulary.ids().__getitem__)
    assert in_order[count - len(ADDED) :] == [*ADDED, *added_tokens(15)]
    assert "<vision>" in Vocabulary.from_qwen(tmp_path, 15).ids(), "the student is asked, not the folder"
    with pytest.raises(DataError, match="the tokenizer has no <vision>"):
        encode(vocabulary, micro_config(prompts=15), turns=[("What?", "It.")], image=torch.zeros(9, 9, 3).byte().numpy())


@pytest.mark.parametrize("pictures", [True, False])
def test_what_is_exported_comes_back(tmp_path, rng, pictures):
    """Also one that has words for pictures, which it never reads."""
    write_tokenizer(tmp_path / "words")
    vocabulary = Vocabulary.from_qwen(tmp_path / "words", 3, pictures)
    student = PixelSail(eve_config(), vocabulary, torch.Generator().manual_seed(1))
    export.write(Folder(str(tmp_path / "out")), student, vocabulary, "# card")
    again, known = export.read(tmp_path / "out")
    assert same(student, again)
    assert (again.config, known.ids()) == (student.config, vocabulary.ids())
    assert load_file(tmp_path / "out/model.safetensors").keys() == student.state_dict().keys()
    other, _, told = started(tmp_path / "out", eve_config())
    assert same(student, other)
    assert told.drawn == ()
    special = json.loads((tmp_path / "out/special_tokens_map.json").read_text())
    assert ("<vpatch>" in special["additional_special_tokens"]) == pictures
    assert (special["eos_token"], special["pad_token"]) == ("<|im_end|>", "<|endoftext|>")
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert (written["eos_token_id"], written["pad_token_id"]) == (vocabulary.turn_end, vocabulary.end_of_text)
    assert written["mm_hidden_size"] == 6
