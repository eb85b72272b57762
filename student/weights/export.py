"""A student as a model folder in the layout of Hugging Face, and back.

    model.safetensors      the weights, under the reference's names; cut into numbered files with an index where they are large
    tokenizer.json …       the vocabulary, as `transformers.AutoTokenizer.from_pretrained(folder)` reads it
    generation_config.json greedy, to the end of the answer
    README.md              the model card, written first
    config.json            sizes under Qwen2's names, and the student's config; written last: a folder that has it is whole

There is no class for it in transformers: `read` opens it, and `[base]` starts another student from it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from schemas.config import parse
from schemas.errors import ConfigError, DataError
from schemas.storage import Folder
from student.config import StudentConfig
from student.model import PixelSail
from student.sequence import layout_of
from student.vocabulary import TEXT_TOKENS, Vocabulary, special_tokens
from student.weights import convert
from student.weights.base import PUBLISHED, sizes
from student.weights.published import read_json

MODEL_TYPE = "pixel_sail"
CONFIG, CARD, WEIGHTS, INDEX = "config.json", "README.md", "model.safetensors", "model.safetensors.index.json"
OTHERS = {CONFIG, CARD, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"}
SHARD_BYTES = 5_000_000_000
MAX_NEW_TOKENS = 512


def write(folder: Folder, student: PixelSail, vocabulary: Vocabulary, card: str, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Publish the student in an empty folder; returns the names of the files, in the order in which they came there.

    What an export that was broken off has left, its card and no `config.json`, is replaced; nothing else is touched.
    """
    if folder.exists(CONFIG):
        raise ConfigError("there is a model here already", folder.url, "Name another folder, or remove this one.")
    left = folder.names()
    if left and not (CARD in left and all(map(_is_ours, left))):
        raise ConfigError("something else lies here", folder.url, "Name a new folder.")
    for name in left:
        folder.remove(name)
    written: list[str] = []
    for name, data in _files(student, vocabulary, card, shard_bytes):
        folder.write(name, data)
        written.append(name)
    return written


def _is_ours(name: str) -> bool:
    return name in OTHERS or bool(re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?", name))


def read(folder: Path) -> tuple[PixelSail, Vocabulary]:
    """The student of an exported folder, ready to be asked, and its vocabulary."""
    settings = read_json(folder / CONFIG).get("student")
    if not isinstance(settings, dict):
        raise DataError("no student was exported here", str(folder / CONFIG), "Give a folder that `sailyard export` wrote.")
    config = parse(StudentConfig, settings, str(folder / CONFIG))
    vocabulary = Vocabulary.from_qwen(folder, config.prompts, config.names_pictures)
    student = PixelSail(config, vocabulary, None)
    convert.load(student, folder)
    return student.eval(), vocabulary


def _files(student: PixelSail, vocabulary: Vocabulary, card: str, shard_bytes: int) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every file: first what says whose folder it is, last what makes it count."""
    yield CARD, card.encode()
    yield from _weights(student.state_dict(), shard_bytes)
    yield "tokenizer.json", vocabulary.to_json().encode()
    yield "tokenizer_config.json", _json(_tokenizer(student.config, vocabulary))
    yield "special_tokens_map.json", _json(_special(student.config, vocabulary))
    yield "generation_config.json", _json(_generation(vocabulary))
    yield CONFIG, _json(_config(student, vocabulary))


def _weights(state: Mapping[str, Tensor], shard_bytes: int) -> Iterator[tuple[str, bytes]]:
    shards = _shards(state, shard_bytes)
    names = (
        [WEIGHTS] if len(shards) == 1 else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        yield name, save({key: state[key].detach().cpu().contiguous() for key in shard}, {"format": "pt"})
    if len(shards) > 1:
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        size = sum(tensor.nbytes for tensor in state.values())
        yield INDEX, _json({"metadata": {"total_size": size}, "weight_map": places})


def _shards(state: Mapping[str, Tensor], most: int) -> list[list[str]]:
    """The names in runs of at most `most` bytes, or of one tensor that is larger."""
    shards: list[list[str]] = [[]]
    room = most
    for name in sorted(state):
        if shards[-1] and state[name].nbytes > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= state[name].nbytes
    return shards


def _config(student: PixelSail, vocabulary: Vocabulary) -> dict[str, Any]:
    config = student.config
    return {
        "model_type": MODEL_TYPE,
        "architectures": [type(student).__name__],
        **{PUBLISHED[name]: value for name, value in sizes(config).items()},
        "hidden_act": "silu",
        "vocab_size": len(vocabulary),
        "max_position_embeddings": config.max_length,
        "initializer_range": config.initializer_range,
        "dtype": str(student.single_transformer.model.norm.weight.dtype).removeprefix("torch."),
        "eos_token_id": _end(config, vocabulary),
        "pad_token_id": vocabulary.end_of_text,
        "student": config.model_dump(mode="json"),
    }


def _tokenizer(config: StudentConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    plain = {"clean_up_tokenization_spaces": False, "model_max_length": config.max_length}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **plain, **_special(config, vocabulary)}


def _special(config: StudentConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    named = {"eos_token": vocabulary.decode([_end(config, vocabulary)]), "pad_token": TEXT_TOKENS[0]}
    other = vocabulary.ids().keys() - named.values()
    return {**named, "additional_special_tokens": [token for token in special_tokens(config.prompts) if token in other]}


def _end(config: StudentConfig, vocabulary: Vocabulary) -> int:
    """The token that ends an answer."""
    (end,) = layout_of(config, vocabulary).answered("")
    return end


def _generation(vocabulary: Vocabulary) -> dict[str, Any]:
    ends = [vocabulary.end_of_text, vocabulary.turn_end]
    return {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS, "eos_token_id": ends, "pad_token_id": vocabulary.end_of_text}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
