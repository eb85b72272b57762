"""The JSON files of a published model folder, read with suspicion: its config, and its tokenizer whichever way it is stored.

    vocab.json, merges.txt       pieces and merges, or both in tokenizer.json
    tokenizer_config.json        the tokens added behind them, or in added_tokens.json or tokenizer.json

What is not as it should be is a DataError that names the file; nothing of the folder is ever run.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas.errors import DataError

# The word pattern that Qwen2 was trained with; its merges mean nothing under another one.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_WHOLE = "Fetch the folder again."
_HALF = re.compile("[\ud800-\udfff]")  # of a pair of surrogates: JSON can say it, and it is no text
_DIGITS = 9  # of an id, at most
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "added_tokens.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """A byte-level BPE as published. `added` are the tokens added to it, as arguments of `AddedToken`; `at` are their ids."""

    pieces: dict[str, int]
    merges: list[tuple[str, str]]
    added: list[dict[str, Any]]
    at: list[int]

    @cached_property
    def ids(self) -> dict[str, int]:
        """token -> id, of pieces and added tokens."""
        return self.pieces | {fields["content"]: number for fields, number in zip(self.added, self.at, strict=True)}


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError("no such file", str(path), _WHOLE) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read: {error}", str(path), _WHOLE) from None
    if not isinstance(content, dict):
        raise DataError("it holds no JSON object", str(path), _WHOLE)
    return content


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """The tokenizer of the folder, pieces numbered from 0 without a gap and every merge of pieces that there are."""
    pieces, merges, where = _pieces_and_merges(folder)
    numbers = list(pieces.values())
    if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(pieces))):
        raise DataError("its pieces are not numbered from 0 without a gap", where, _WHOLE)
    if half := next(filter(_HALF.search, pieces), None):
        raise DataError(f"the piece {half!r:.80} is no Unicode text", where, _WHOLE)
    strange = next((pair for pair in merges if not {*pair, "".join(pair)} <= pieces.keys()), None)
    if strange:
        raise DataError(f"the merge of {strange[0]!r} and {strange[1]!r} is of no pieces that there are", where, _WHOLE)
    added = _added(folder)
    return TokenizerFiles(pieces, merges, [added[number] for number in sorted(added)], sorted(added))


def _pieces_and_merges(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], str]:
    """With the file that speaks for them."""
    apart, text, whole = folder / "vocab.json", folder / "merges.txt", folder / "tokenizer.json"
    if apart.is_file() and text.is_file():
        return read_json(apart), _merges(_lines(text), text), str(apart)
    if not whole.is_file():
        lacking = text if apart.is_file() else apart
        raise DataError("no such file", str(lacking), "A tokenizer is vocab.json and merges.txt, or tokenizer.json.")
    content = read_json(whole)
    if not _is_qwens(content):
        raise DataError("no byte-level BPE over the words of Qwen2", str(whole), "Give the folder of a Qwen2 or Qwen2.5 model.")
    model = content["model"]
    return model["vocab"], _merges(model.get("merges"), whole), str(whole)


def _is_qwens(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json holds a BPE that cuts words as Qwen2 does."""
    model = content.get("model")
    known = isinstance(model, dict) and model.get("type") == "BPE" and isinstance(model.get("vocab"), dict)
    return known and json.dumps(WORDS) in json.dumps(content.get("pre_tokenizer"))


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", str(path), _WHOLE) from None
    return [line for line in lines if line and not line.startswith("#version")]


def _merges(written: Any, path: Path) -> list[tuple[str, str]]:
    """Pairs, which newer files write as lists of two and older ones as a line with a space."""
    pairs = [tuple(each.split(" ") if isinstance(each, str) else each) for each in written] if _is_merges(written) else [()]
    if not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise DataError("its merges are not pairs", str(path), _WHOLE)
    return pairs  # pyright: ignore[reportReturnType]


def _is_merges(written: Any) -> bool:
    return isinstance(written, list) and all(isinstance(each, str | list) for each in written)


def _added(folder: Path) -> dict[int, dict[str, Any]]:
    """id -> token, of every file that tells of added tokens; the first says how it is matched, all must agree on its text."""
    found: dict[int, dict[str, Any]] = {}
    for number, fields, where in [*_told_with_flags(folder), *_told_by_name(folder)]:
        if found.setdefault(number, fields)["content"] != fields["content"]:
            raise DataError(f"token {number} is {fields['content']!r} here and another in another file", where, _WHOLE)
    return found


def _told_with_flags(folder: Path) -> list[tuple[int, dict[str, Any], str]]:
    config, whole = folder / "tokenizer_config.json", folder / "tokenizer.json"
    told: list[tuple[Any, Any, str]] = []
    if whole.is_file() and isinstance(listed := read_json(whole).get("added_tokens"), list):
        told += [(each.get("id") if isinstance(each, dict) else None, each, str(whole)) for each in listed]
    if config.is_file() and isinstance(decoder := read_json(config).get("added_tokens_decoder"), dict):
        told += [(_number(key), each, str(config)) for key, each in decoder.items()]
    return [_checked(number, fields, where) for number, fields, where in told]


def _number(key: str) -> int | None:
    """The id that a key says, if it says one."""
    return int(key) if key.isdecimal() and len(key) <= _DIGITS else None


def _told_by_name(folder: Path) -> list[tuple[int, dict[str, Any], str]]:
    path = folder / "added_tokens.json"
    named: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    plain = {"special": True, "normalized": False}
    return [_checked(number, {"content": token, **plain}, str(path)) for token, number in named.items()]


def _checked(number: Any, fields: Any, where: str) -> tuple[int, dict[str, Any], str]:
    """An added token's id, its text and flags and nothing else."""
    if type(number) is not int or not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        raise DataError(f"an added token lacks id or text (an id has at most {_DIGITS} digits)", where, _WHOLE)
    if _HALF.search(fields["content"]):
        raise DataError(f"the added token {fields['content']!r:.80} is no Unicode text", where, _WHOLE)
    flags = {flag: fields[flag] for flag in _FLAGS if isinstance(fields.get(flag), bool)}
    return number, {"content": fields["content"], **flags}, where
