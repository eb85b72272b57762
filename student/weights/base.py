"""The published model that a student starts from: a folder in the layout of Hugging Face, its weights put into a PixelSail.

    a Qwen2 or Qwen2.5 model     the transformer; pixels, prompts and mask head stay as they were drawn
    an early-fusion base         the same with `vis_embed`, and `vision_patch_size` in its config
    a Pixel-SAIL student         all of it, as `sailyard export` writes it
    for one in EVEv2's layout    EVEv2 itself, all but prompts and mask head; or a Qwen2 model, whose weights are taken for text
                                 and for what is seen

Read are config.json, the tokenizer's files and safetensors; no pickle, no code. Every size must be the student's.

Rows of the embeddings and of the language head follow their token, by its text. A token that the base does not know takes
the row that lies at its id in the base, where that is padded beyond its tokenizer: cutting the table to the vocabulary, as
the release does, leaves it there. Other new rows are drawn about the mean of the old ones, with a billionth of their
covariance, as `resize_token_embeddings` of transformers 5 does.
"""

import json
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from schemas.errors import ConfigError, DataError
from student.config import BaseConfig, StudentConfig
from student.model import PixelSail
from student.vocabulary import Vocabulary
from student.weights import convert
from student.weights.published import read_json, read_tokenizer

PUBLISHED = {  # field of StudentConfig -> what a published config calls it
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
    "patch": "vision_patch_size",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "eve.channels": "mm_hidden_size",
}
_UNSAID = {"rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_ALWAYS = {"hidden_act": "silu", "use_sliding_window": False, "rope_type": "default"}
_COVARIANCE = 1e-9
_AGAIN = "Fetch the folder again."
_TABLES = (convert.EMBEDDING, convert.HEAD)


@dataclass(frozen=True)
class Started:
    """What a student has of its base: tensors taken and tensors left as drawn; of the vocabulary, rows that followed their
    token's text, rows of the base's padding, and rows drawn anew."""

    tensors: int
    drawn: tuple[str, ...]
    known: int
    padding: int
    new: int


def locate(base: BaseConfig) -> Path:
    """Where the files of the base lie. Nothing is downloaded: a run must not depend on what a name means today."""
    if base.folder is None:
        remedy = f"Run `hf download {base.weights} --local-dir DIR`, and set `folder` under [base] to it."
        raise ConfigError("a base needs its `folder`", base.weights, remedy)
    if not Path(base.folder).is_dir():
        raise DataError(f"no folder of {base.weights} here", base.folder, "Correct `folder` under [base].")
    return Path(base.folder)


def load(student: PixelSail, vocabulary: Vocabulary, base: BaseConfig, seed: int) -> Started:
    """Put the weights of the base into a student that has just been drawn; new rows are drawn from `seed`."""
    folder = locate(base)
    require_sizes(student.config, folder)
    found = convert.read(folder, pickles=False)
    whole = any("single_transformer." in name for name in found)
    named = found if whole else {f"single_transformer.{name}": tensor for name, tensor in found.items()}
    named = {name: tensor for name, tensor in named.items() if not name.endswith("rotary_emb.inv_freq")}
    of_text = student.config.eve is not None and not (whole or convert.eve_tensors(named))
    if of_text:
        named |= _twice(student.state_dict(), named)
    convert.require_layout(named, student.config, str(folder))
    tensors, _ = convert.own(named, str(folder), tied=student.config.tie_embeddings)
    state = student.state_dict()
    spare = () if whole else _not_in_a_base(state, tensors, of_text)
    convert.require_fit(state, tensors, str(folder), spare=spare, resized=_TABLES)
    rows = Rows.of(vocabulary, folder, _table(tensors, student.config, folder))
    generator = torch.Generator().manual_seed(seed)
    tables = {name: _resized(tensors[name], rows, generator) for name in _TABLES if name in tensors}
    student.load_state_dict(tensors | tables, strict=False)
    drawn = tuple(name for name in state if name not in tensors)
    return Started(len(tensors), drawn, rows.known, rows.padding, rows.new)


def sizes(config: StudentConfig) -> dict[str, Any]:
    """Field -> value, of those that a published config tells."""
    return {name: attrgetter(name)(config) for name in PUBLISHED if config.eve or not name.startswith("eve.")}


def require_sizes(config: StudentConfig, folder: Path) -> None:
    """ConfigError naming every size of the base that is not the student's, and what of it no student has."""
    path = folder / "config.json"
    published = _flat(read_json(path))
    asked = sizes(config)
    found = {name: published.get(PUBLISHED[name], asked[name]) for name in asked}
    other = [name for name in asked if found[name] != asked[name]]
    faults = [f"{name} = {json.dumps(asked[name])} where the base has {json.dumps(found[name])}" for name in other]
    strange = [f"{name} = {json.dumps(published[name])}" for name, only in _ALWAYS.items() if published.get(name, only) != only]
    if strange:
        what = f"the base has {', '.join(strange)}, which no student has"
        raise ConfigError("; ".join([what, *faults]), str(path), "Give the folder of a Qwen2 or Qwen2.5 model.")
    if faults:
        remedy = f"Set under [student]: {', '.join(f'{name} = {json.dumps(found[name])}' for name in other)}."
        raise ConfigError(f"the base has other sizes than the student: {'; '.join(faults)}", str(path), remedy)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what it leaves unsaid, and with its rotary settings, which newer files keep apart, beside the rest."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    rope = {"rope_type": rope.get("type", "default"), **rope} if isinstance(rope, dict) else {}
    config = {**_UNSAID, **config, **rope}
    wide, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if config.get("head_dim") is None and type(wide) is int and type(heads) is int and heads > 0:
        config["head_dim"] = wide // heads
    return config


@dataclass(frozen=True)
class Rows:
    """For each id of the vocabulary the row of the base's tables that it takes, or -1; `known` of them by their text."""

    sources: Tensor
    known: int

    @classmethod
    def of(cls, vocabulary: Vocabulary, folder: Path, rows: int) -> "Rows":
        """rows: how many the base has, of which those beyond its tokenizer are padding."""
        ids = read_tokenizer(folder).ids
        tokens = max(ids.values(), default=-1) + 1
        if tokens > rows:
            raise DataError(f"a tokenizer of {tokens} tokens beside embeddings of {rows}", str(folder), _AGAIN)
        sources = torch.full((len(vocabulary),), -1)
        known = 0
        for token, number in vocabulary.ids().items():
            known += token in ids
            sources[number] = ids.get(token, number if tokens <= number < rows else -1)
        return cls(sources, known)

    @property
    def new(self) -> int:
        return int((self.sources < 0).sum())

    @property
    def padding(self) -> int:
        return len(self.sources) - self.new - self.known


def _resized(table_VH: Tensor, rows: Rows, generator: torch.Generator) -> Tensor:
    """The table with a row for each id of the vocabulary."""
    made = table_VH[rows.sources.clamp(min=0)].float()
    if rows.new:
        made[rows.sources < 0] = _about_the_mean(table_VH.float(), rows.new, generator)
    return made


def _about_the_mean(table_VH: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, H): the mean of the rows, and on it a mixture of their deviations that has their covariance, scaled."""
    mean_H = table_VH.mean(dim=0)
    shares_NV = torch.randn(count, len(table_VH), generator=generator) * (_COVARIANCE / len(table_VH)) ** 0.5
    return mean_H + shares_NV @ table_VH - shares_NV.sum(dim=1, keepdim=True) * mean_H


def _table(tensors: dict[str, Tensor], config: StudentConfig, folder: Path) -> int:
    """How many rows the base's tables have, all as wide as the student."""
    shapes = {name: tuple(tensors[name].shape) for name in _TABLES if name in tensors}
    found = set(shapes.values())
    if len(found) != 1 or {shape[1:] for shape in found} != {(config.hidden,)}:
        raise DataError(f"embeddings and language head are {shapes}, not {config.hidden} wide", str(folder), _AGAIN)
    return found.pop()[0]


def _twice(state: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model of text gives its weights for what is seen, too: so EVEv2 begins."""
    pairs = ((name, found.get(name.replace("moe_", ""))) for name in state if "moe_" in name)
    return {name: tensor for name, tensor in pairs if tensor is not None}


def _not_in_a_base(state: dict[str, Tensor], found: dict[str, Tensor], of_text: bool) -> set[str]:
    """What may be missing: prompts, pixels where the base reads none, and everything beside the transformer. A base of EVEv2
    reads pixels; for its layout one that does not is a model of text and no other."""
    pixels = ("vis_embed", "vision_tower") if of_text else ("vis_embed",)
    parts = (f"single_transformer.model.{name}." for name in (*pixels, "vp_embed"))
    new = tuple(part for part in parts if not any(name.startswith(part) for name in found))
    return {name for name in state if name.startswith(new) or not name.startswith("single_transformer.")}
