"""Students as model folders: what transformers reads of them, and what comes back."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

from schemas.errors import ConfigError, DataError
from schemas.storage import Folder
from student.config import BaseConfig
from student.model import PixelSail
from student.vocabulary import Vocabulary
from student.weights import base, export
from tests.sample import sample_of
from tests.student.micro import micro_config, micro_vocabulary

TEXT = "Please segment <Prompt1> and <p>naïve 图 🤗</p> [SEG].<|im_end|>\n\n  it's 123<|endoftext|>"


def made(seed: int = 1, **over) -> PixelSail:
    return PixelSail(micro_config(**over), micro_vocabulary(), torch.Generator().manual_seed(seed))


def same(first: PixelSail, second: PixelSail) -> bool:
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("tied", "shard_bytes"), [(False, export.SHARD_BYTES), (True, 20_000)])
def test_what_is_exported_comes_back(tmp_path, tied, shard_bytes):
    student, vocabulary = made(tie_embeddings=tied, recency=0.5), micro_vocabulary()
    names = export.write(Folder(str(tmp_path / "out")), student, vocabulary, "# card", shard_bytes)
    assert (names[0], names[-1]) == (export.CARD, export.CONFIG)
    assert sorted(names) == sorted(Folder(str(tmp_path / "out")).names())
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")}
    largest = max(tensor.nbytes for tensor in student.state_dict().values())
    assert (len(sizes) > 3) == (shard_bytes < export.SHARD_BYTES)
    assert max(sizes.values()) < max(shard_bytes, largest) + 4096
    again, known = export.read(tmp_path / "out")
    assert same(student, again)
    assert again.config == student.config
    assert (known.ids(), known.encode(TEXT)) == (vocabulary.ids(), vocabulary.encode(TEXT))


def test_a_shard_is_full_or_of_one_tensor(tmp_path):
    student, most = made(), 20_000
    export.write(Folder(str(tmp_path)), student, micro_vocabulary(), "# card", most)
    sizes = {name: tensor.nbytes for name, tensor in student.state_dict().items()}
    shards = [list(load_file(path)) for path in sorted(tmp_path.glob("*.safetensors"))]
    full = [sum(sizes[name] for name in shard) for shard in shards]
    assert all(size <= most or len(shard) == 1 for size, shard in zip(full, shards, strict=True))
    assert any(size > most for size in full[1:])
    assert all(size + sizes[min(after)] > most for size, after in zip(full, shards[1:], strict=False))


def test_another_student_starts_from_it(tmp_path):
    student, vocabulary = made(), micro_vocabulary()
    export.write(Folder(str(tmp_path)), student, vocabulary, "# card")
    other = made(2)
    told = base.load(other, vocabulary, BaseConfig(weights="ours", folder=str(tmp_path)), 0)
    assert (told.known, told.padding, told.new, told.drawn) == (len(vocabulary), 0, 0, ())
    assert same(student, other)


def test_transformers_reads_the_same_tokens(tmp_path):
    vocabulary = micro_vocabulary()
    export.write(Folder(str(tmp_path)), made(), vocabulary, "# card")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(TEXT).input_ids == vocabulary.encode(TEXT)
    assert tokenizer.decode(vocabulary.encode(TEXT)) == TEXT
    assert len(tokenizer) == len(vocabulary)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (vocabulary.end_of_text, vocabulary.end_of_text)
    assert {*vocabulary.prompt_ids, vocabulary.seg, vocabulary.patch} <= {*tokenizer.all_special_ids}
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [vocabulary.end_of_text, vocabulary.turn_end]


@pytest.mark.sample
@pytest.mark.slow
def test_transformers_reads_the_tokens_of_a_real_base(tmp_path):
    vocabulary = Vocabulary.from_qwen(sample_of("qwen2_tokenizer__Qwen"), 3)
    student = PixelSail(micro_config(layers=1, hidden=4, heads=1, kv_heads=1, head_dim=4), vocabulary, torch.Generator())
    export.write(Folder(str(tmp_path)), student, vocabulary, "# card")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(TEXT).input_ids == vocabulary.encode(TEXT)
    assert len(tokenizer) == len(vocabulary)


def test_half_an_export_does_not_count_and_is_replaced(tmp_path):
    folder, student = Folder(str(tmp_path / "out")), made()
    export.write(folder, student, micro_vocabulary(), "# card", 20_000)
    folder.remove(export.CONFIG)
    with pytest.raises(DataError, match=r"config\.json: no such file"):
        export.read(tmp_path / "out")
    export.write(folder, made(2), micro_vocabulary(), "# card")
    assert same(export.read(tmp_path / "out")[0], made(2))
    with pytest.raises(ConfigError, match="a model here already"):
        export.write(folder, student, micro_vocabulary(), "# card")


@pytest.mark.parametrize("name", ["pixel_sail.safetensors", "model.safetensors", "training.safetensors"])
def test_what_others_have_in_the_folder_stays_there(tmp_path, name):
    (tmp_path / name).write_bytes(b"theirs")
    with pytest.raises(ConfigError, match="something else lies here"):
        export.write(Folder(str(tmp_path)), made(), micro_vocabulary(), "# card")
    assert (tmp_path / name).read_bytes() == b"theirs"


def test_any_storage_will_do():
    folder = Folder("memory://exported/student")
    names = export.write(folder, made(), micro_vocabulary(), "# card")
    assert sorted(names) == sorted(folder.names())
    settings = json.loads(folder.read(export.CONFIG))
    assert (settings["num_hidden_layers"], settings["vision_patch_size"]) == (2, 16)


def test_a_folder_of_something_else_is_no_export(tmp_path):
    (tmp_path / export.CONFIG).write_text('{"model_type": "qwen2"}')
    with pytest.raises(DataError, match="no student was exported here"):
        export.read(tmp_path)
