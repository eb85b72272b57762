"""Text to token ids and back: a byte-level BPE with the tokens that Pixel-SAIL adds.

Ids run: bytes and merges, then `TEXT_TOKENS` and `PICTURE_TOKENS`, then `[SEG] <p> </p> <Prompt0> … <PromptN-1> <NO_Prompt>` in
that order, the order in which the reference grows its tokenizer. `<NO_Prompt>` never stands in a sequence; it keeps checkpoints
aligned. One taken from a published tokenizer keeps every id of that, its added tokens too, and has behind them what it lacked.
In EVEv2 what is seen has no words, and the release adds none: without `pictures` there are no `PICTURE_TOKENS`.
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from schemas.errors import ConfigError, DataError
from student.weights.published import WORDS, read_tokenizer

TEXT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PICTURE_TOKENS = ("<vision>", "<vpatch>", "</vision>")


def special_tokens(prompts: int, pictures: bool = True) -> list[str]:
    """The tokens that a student needs, in order of id. pictures: whether what it sees is named by tokens."""
    return [*TEXT_TOKENS, *(PICTURE_TOKENS if pictures else ()), *added_tokens(prompts)]


def added_tokens(prompts: int) -> list[str]:
    """The tokens that Pixel-SAIL adds for `prompts` visual prompts, in order of id."""
    return ["[SEG]", "<p>", "</p>", *(f"<Prompt{k}>" for k in range(prompts)), "<NO_Prompt>"]


class Vocabulary:
    """A trained tokenizer with `prompts` visual prompts; every special token's id is an attribute.

    Attributes: `end_of_text`, `turn_start`, `turn_end`, `seg`, `phrase`, `phrase_end`, with tokens for pictures `vision`,
    `patch` and `vision_end` (ids), and `prompt_ids`, the ids of `<Prompt0>` … in order.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.end_of_text, self.turn_start, self.turn_end = (self._id(token) for token in TEXT_TOKENS)
        self.seg, self.phrase, self.phrase_end = (self._id(token) for token in ("[SEG]", "<p>", "</p>"))
        known = tokenizer.get_vocab()
        count = next(k for k in range(len(known)) if f"<Prompt{k}>" not in known)
        self.prompt_ids = tuple(known[f"<Prompt{k}>"] for k in range(count))

    @classmethod
    def train(cls, texts: Iterable[str], size: int, prompts: int, pictures: bool = True) -> "Vocabulary":
        """A BPE learned from `texts`, of at most `size` tokens all in all (fewer where the texts hold no more pairs).

        The word that opens every turn is learned with each text, or a small vocabulary would spell it out every time.
        """
        special = special_tokens(prompts, pictures)
        merges = size - len(special)
        if merges < 256:
            raise ConfigError(f"{size} tokens hold no alphabet", "vocabulary size", f"Use {256 + len(special)} or more.")
        tokenizer = _byte_level(models.BPE())
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=merges, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator((piece for text in texts for piece in (text, "user")), trainer)
        return cls(_with_special(tokenizer, special))

    @classmethod
    def from_qwen(cls, folder: Path, prompts: int, pictures: bool = True) -> "Vocabulary":
        """The vocabulary of a Qwen2 folder, and behind it what it lacks of the special tokens.

        Raises DataError where the files are no byte-level BPE, or leave gaps between their ids.
        """
        found = read_tokenizer(Path(folder))
        tokenizer = _byte_level(models.BPE(found.pieces, found.merges))
        tokenizer.add_tokens([AddedToken(**fields) for fields in found.added])
        if tokenizer.get_vocab(with_added_tokens=True) != found.ids:
            raise DataError("its added tokens do not follow its pieces id by id", str(folder), "Give a folder as published.")
        return cls(_with_special(tokenizer, special_tokens(prompts, pictures)))

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """The vocabulary that `to_json` wrote."""
        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        """The whole vocabulary in the `tokenizer.json` format."""
        return self._tokenizer.to_str()

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens written in it become their single id."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], keep_special: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=not keep_special)

    def ids(self) -> dict[str, int]:
        """token -> id, of all tokens; pieces of words are written as byte-level BPE writes them."""
        return self._tokenizer.get_vocab(with_added_tokens=True)

    @cached_property
    def vision(self) -> int:
        return self._id("<vision>")

    @cached_property
    def patch(self) -> int:
        return self._id("<vpatch>")

    @cached_property
    def vision_end(self) -> int:
        return self._id("</vision>")

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise DataError(f"the tokenizer has no {token}", "vocabulary", "Make it with Vocabulary.train or from_qwen.")
        return found


def _byte_level(model: models.BPE) -> Tokenizer:
    """A tokenizer around `model` that loses nothing: NFC, the word pattern, then bytes as characters."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _with_special(tokenizer: Tokenizer, tokens: list[str]) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    return tokenizer
