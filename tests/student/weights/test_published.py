"""Tokenizers of published folders that say what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import DataError
from student.weights.published import WORDS, read_tokenizer
from tests.student.weights.qwen import write_tokenizer

HALF = "\ud800"  # of a pair of surrogates


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


def long_key(folder: Path) -> None:
    change(folder / "tokenizer_config.json", added_tokens_decoder={"9" * 5000: {"content": "<x>"}})


def long_number(folder: Path) -> None:
    (folder / "added_tokens.json").write_text('{"<x>": ' + "9" * 5000 + "}")


def half_added(folder: Path) -> None:
    change(folder / "tokenizer_config.json", added_tokens_decoder={"300": {"content": f"{HALF}x"}})


def half_named(folder: Path) -> None:
    change(folder / "added_tokens.json", **{f"{HALF}x": 300})


def half_piece(folder: Path) -> None:
    pieces = json.loads((folder / "vocab.json").read_text())
    change(folder / "vocab.json", **{HALF: len(pieces)})


def half_in_one_file(folder: Path) -> None:
    pieces = json.loads((folder / "vocab.json").read_text())
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    model = {"type": "BPE", "vocab": pieces | {HALF: len(pieces)}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "pre_tokenizer": {"pattern": WORDS}}))


@pytest.mark.parametrize(
    ("damage", "file", "says"),
    [
        (long_key, "tokenizer_config.json", r"lacks id or text \(an id has at most 9 digits\)"),
        (long_number, "added_tokens.json", "cannot be read: Exceeds the limit"),
        (half_added, "tokenizer_config.json", r"the added token '\\ud800x' is no Unicode text"),
        (half_named, "added_tokens.json", r"the added token '\\ud800x' is no Unicode text"),
        (half_piece, "vocab.json", r"the piece '\\ud800' is no Unicode text"),
        (half_in_one_file, "tokenizer.json", r"the piece '\\ud800' is no Unicode text"),
    ],
)
def test_what_is_no_text_and_no_id_is_told_in_a_line(tmp_path, damage, file, says):
    write_tokenizer(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=says) as told:
        read_tokenizer(tmp_path)
    line = str(told.value)
    assert line.startswith(f"{tmp_path / file}: ")
    assert line.endswith("Fetch the folder again.")
    assert line.isprintable()
    assert len(line) < len(str(tmp_path)) + 250
