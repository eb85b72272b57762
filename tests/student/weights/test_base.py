"""A student that starts from a published model: transformers' own Qwen2, saved by transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from schemas.errors import ConfigError, DataError
from student.config import BaseConfig, StudentConfig
from student.model import PixelSail
from student.sequence import collate, encode
from student.vocabulary import Vocabulary
from student.weights import base
from tests.student.weights.qwen import ADDED, fitting, write_qwen, write_tokenizer

TURNS = [("What is red and what beside it?", "A circle, a small blue square."), ("It is [SEG]?", "Please segment it.")]


def started(folder: Path, config: StudentConfig, seed: int = 0) -> tuple[PixelSail, Vocabulary, base.Started]:
    vocabulary = Vocabulary.from_qwen(folder, config.prompts)
    student = PixelSail(config, vocabulary, torch.Generator().manual_seed(1))
    told = base.load(student, vocabulary, BaseConfig(weights="micro", folder=str(folder)), seed)
    return student.eval(), vocabulary, told


@pytest.mark.parametrize(("tied", "shard"), [(False, "5GB"), (True, "20KB")])
def test_on_text_the_student_is_the_model_that_it_started_from(tmp_path, tied, shard):
    model = write_qwen(tmp_path, tie_word_embeddings=tied, shard=shard)
    config = fitting(tie_embeddings=tied)
    student, vocabulary, told = started(tmp_path, config)
    batch = collate([encode(vocabulary, config, turns=TURNS, sample_id="text")])
    model.resize_token_embeddings(len(vocabulary))
    with torch.no_grad():
        wanted_RV = model(batch.tokens_R[None]).logits[0]
        found_RV = student.logits(student.states(batch))
    torch.testing.assert_close(found_RV, wanted_RV, rtol=0, atol=1e-5)
    assert (told.padding, told.new) == (len(vocabulary) - told.known, 0)


def test_rows_are_cut_to_the_vocabulary_and_tokens_keep_their_ids(tmp_path):
    model = write_qwen(tmp_path, padding=40)
    student, vocabulary, told = started(tmp_path, fitting())
    assert list(vocabulary.ids().items() & {(token, told.known - len(ADDED) + i) for i, token in enumerate(ADDED)})
    assert len(student.single_transformer.model.embed_tokens.weight) == len(vocabulary) < len(model.model.embed_tokens.weight)
    assert (told.known, told.padding, told.new) == (vocabulary.vision, len(vocabulary) - vocabulary.vision, 0)
    torch.testing.assert_close(student.single_transformer.lm_head.weight, model.lm_head.weight[: len(vocabulary)])


def test_new_rows_lie_about_the_mean_as_transformers_draws_them(tmp_path):
    model = write_qwen(tmp_path, padding=0)
    student, vocabulary, told = started(tmp_path, fitting())
    assert (told.padding, told.new) == (0, len(vocabulary) - told.known)
    old = model.model.embed_tokens.weight.detach().clone()
    model.resize_token_embeddings(len(vocabulary))
    made = student.single_transformer.model.embed_tokens.weight[told.known :]
    torch.testing.assert_close(made, model.model.embed_tokens.weight[told.known :], rtol=0, atol=1e-4)
    spread = (made - old.mean(dim=0)).std() / old.std()
    assert 0.5e-9**0.5 < spread < 2e-9**0.5
    assert len(made.unique(dim=0)) == len(made)


def test_new_rows_follow_the_seed(tmp_path):
    write_qwen(tmp_path, padding=0)
    first, second, other = (started(tmp_path, fitting(), seed)[0].state_dict() for seed in (0, 0, 1))
    name = "single_transformer.model.embed_tokens.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], other[name])


def test_a_row_follows_the_text_of_its_token_not_its_number(tmp_path):
    model = write_qwen(tmp_path)
    vocabulary = Vocabulary.from_qwen(tmp_path, 3)
    moved = ("<vision>", *ADDED)
    write_tokenizer(tmp_path / "moved", moved)
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "moved" / file).write_bytes((tmp_path / file).read_bytes())
    student = PixelSail(fitting(), vocabulary, torch.Generator().manual_seed(1))
    base.load(student, vocabulary, BaseConfig(weights="moved", folder=str(tmp_path / "moved")), 0)
    table, theirs = student.single_transformer.model.embed_tokens.weight, model.model.embed_tokens.weight
    at = vocabulary.end_of_text
    assert torch.equal(table[vocabulary.vision], theirs[at])
    assert torch.equal(table[at : at + len(ADDED)], theirs[at + 1 : at + 1 + len(ADDED)])


def test_a_token_beyond_the_rows_is_told_though_the_vocabulary_was_made_before(tmp_path):
    write_qwen(tmp_path)
    student, vocabulary, _ = started(tmp_path, fitting())
    (tmp_path / "added_tokens.json").write_text('{"[SEG]": 99999}')
    with pytest.raises(DataError, match="a tokenizer of 100000 tokens beside embeddings of"):
        base.load(student, vocabulary, BaseConfig(weights="micro", folder=str(tmp_path)), 0)


def test_what_a_model_of_text_has_not_stays_as_drawn(tmp_path):
    write_qwen(tmp_path)
    student, vocabulary, told = started(tmp_path, fitting())
    fresh = PixelSail(fitting(), vocabulary, torch.Generator().manual_seed(1)).state_dict()
    assert {name.split(".")[0] for name in told.drawn} >= {"seg_token_projector", "upsample_blocks", "image_feature_projector"}
    assert {f"single_transformer.model.{name}.weight" for name in ("vis_embed", "vp_embed")} <= {*told.drawn}
    assert all(torch.equal(student.state_dict()[name], fresh[name]) for name in told.drawn)


def test_an_early_fusion_base_brings_its_pixels(tmp_path):
    write_qwen(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.vis_embed.weight"] = torch.randn(32, 3 * 16 * 16)
    save_file(tensors, tmp_path / "model.safetensors")
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"vision_patch_size": 16}))
    student, _, told = started(tmp_path, fitting())
    assert torch.equal(student.single_transformer.model.vis_embed.weight, tensors["model.vis_embed.weight"])
    assert "single_transformer.model.vis_embed.weight" not in told.drawn
    (tmp_path / "config.json").write_text(json.dumps(settings | {"vision_patch_size": 32}))
    with pytest.raises(ConfigError, match=r"patch = 16 where the base has 32.*Set under \[student\]: patch = 32\."):
        started(tmp_path, fitting())


def test_what_is_computed_anew_may_stand_in_a_base(tmp_path):
    write_qwen(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    waves = {f"model.{name}rotary_emb.inv_freq": torch.ones(4) for name in ("", "layers.0.self_attn.", "layers.1.self_attn.")}
    save_file(tensors | waves, tmp_path / "model.safetensors")
    _, _, told = started(tmp_path, fitting())
    assert told.tensors == len(tensors)


def test_every_size_that_differs_is_named_with_what_to_set(tmp_path):
    write_qwen(tmp_path)
    other = fitting(layers=3, heads=8, head_dim=4, ffn=48, rope_theta=1e6, norm_eps=1e-6, tie_embeddings=True)
    with pytest.raises(ConfigError) as told:
        started(tmp_path, other)
    line = str(told.value)
    assert "\n" not in line
    for setting in ("layers = 2", "heads = 4", "head_dim = 8", "ffn = 64", "rope_theta = 5000.0", "norm_eps = 1e-05"):
        assert setting in line.partition("Set under")[2]
    assert "tie_embeddings = false" in line
    assert "hidden" not in line


@pytest.mark.parametrize(
    "field",
    [{"hidden_act": "gelu"}, {"use_sliding_window": True}, {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "yarn"}}],
)
def test_a_base_that_works_otherwise_is_refused(tmp_path, field):
    write_qwen(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | field))
    with pytest.raises(ConfigError, match="no student has"):
        started(tmp_path, fitting())


def tensor_away(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def tensor_extra(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.layers.1.self_attn.q_norm.weight": torch.ones(8)}, folder / "model.safetensors")


def of_integers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def climbing(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shard_gone(folder: Path, name: str = "model-00001-of-00001.safetensors") -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))


def shard_of_a_long_name(folder: Path) -> None:
    shard_gone(folder, f"{'m' * 5000}.safetensors")


def shard_of_two_lines(folder: Path) -> None:
    shard_gone(folder, "a\nb\0.safetensors")


def shard_is_a_folder(folder: Path) -> None:
    (folder / "part.safetensors").mkdir()
    shard_gone(folder, "part.safetensors")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def no_object(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


def deep(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000)


def small_tables(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    save_file(tensors, folder / "model.safetensors")


def few_rows(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = tensors[name][:100].clone()
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (tensor_away, r"missing: single_transformer\.model\.layers\.1\.mlp\.up_proj\.weight"),
        (tensor_extra, r"unexpected: single_transformer\.model\.layers\.1\.self_attn\.q_norm\.weight"),
        (of_integers, r"not of floating point: single_transformer\.model\.norm\.weight"),
        (cut, "not a safetensors file"),
        (climbing, "names no files of its own folder"),
        (shard_gone, "not there: 'model-00001-of-00001.safetensors'"),
        (shard_of_a_long_name, r"not there: 'm{79}\."),
        (shard_of_two_lines, r"not there: 'a\\nb\\x00\.safetensors'"),
        (shard_is_a_folder, "not there: 'part.safetensors'"),
        (pickled, "no weights here"),
        (no_object, "no JSON object"),
        (deep, "cannot be read"),
        (small_tables, "embeddings and language head are"),
        (few_rows, "tokens beside embeddings of 100"),
    ],
)
def test_a_damaged_or_hostile_folder_is_told_in_a_line(tmp_path, damage, says):
    write_qwen(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=says) as told:
        started(tmp_path, fitting())
    assert "\n" not in str(told.value)
    assert str(tmp_path) in str(told.value)


def test_a_base_without_files_says_how_to_get_them(tmp_path):
    with pytest.raises(ConfigError, match=r"hf download Qwen/Qwen2\.5-0\.5B --local-dir"):
        base.locate(BaseConfig(weights="Qwen/Qwen2.5-0.5B"))
    with pytest.raises(DataError, match=r"Correct `folder` under \[base\]"):
        base.locate(BaseConfig(weights="Qwen/Qwen2.5-0.5B", folder=str(tmp_path / "nowhere")))
