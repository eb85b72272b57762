"""Folders as Qwen2.5 is published in them, of a few kilobytes: weights and config saved by transformers' own class."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from student.config import StudentConfig
from tests.student.micro import micro_config, micro_vocabulary

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<tool_call>")
PADDING = 12
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
}


def fitting(**over: Any) -> StudentConfig:
    """The micro student with the sizes of these folders."""
    return micro_config(**({"rope_theta": 5000.0, "norm_eps": 1e-5, "recency": 0.0} | over))


def write_tokenizer(folder: Path, added: tuple[str, ...] = ADDED) -> int:
    """vocab.json, merges.txt and tokenizer_config.json; returns how many tokens they have."""
    model = json.loads(micro_vocabulary().to_json())["model"]
    pieces, merges = model["vocab"], [" ".join(pair) for pair in model["merges"]]
    decoder = {
        str(len(pieces) + i): {"content": token, "special": token.startswith("<|"), "normalized": False}
        for i, token in enumerate(added)
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(pieces))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    return len(pieces) + len(added)


def write_qwen(folder: Path, *, padding: int = PADDING, shard: str = "5GB", **over: Any) -> Qwen2ForCausalLM:
    """The whole folder; returns the model that it holds."""
    rows = write_tokenizer(folder) + padding
    torch.manual_seed(3)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=rows, **(SIZES | {"tie_word_embeddings": False} | over))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.normal_(std=0.2)
    model.save_pretrained(folder, max_shard_size=shard)
    return model
