import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from schemas.errors import ConfigError, DataError
from student.vocabulary import Vocabulary, added_tokens
from tests.sample import sample_of
from tests.student.micro import TEXTS, micro_vocabulary
from tests.student.weights.qwen import ADDED, write_tokenizer


def test_added_tokens_end_the_vocabulary_in_the_order_of_the_reference():
    vocabulary = Vocabulary.train(TEXTS, 320, 15)
    names = ["[SEG]", "<p>", "</p>", *(f"<Prompt{k}>" for k in range(15)), "<NO_Prompt>"]
    size = len(vocabulary)
    assert size <= 320
    assert [vocabulary.encode(name) for name in names] == [[size - 19 + i] for i in range(19)]
    assert vocabulary.prompt_ids == tuple(range(size - 16, size - 1))
    assert (vocabulary.seg, vocabulary.phrase, vocabulary.phrase_end) == (size - 19, size - 18, size - 17)


@pytest.mark.parametrize("text", ["It is [SEG].", "naïve 图 🤗 \n\n  tabs\tand   spaces ", "<Prompt1> is <p>this</p>?", ""])
def test_decoding_gives_the_text_back(text):
    vocabulary = micro_vocabulary()
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_special_tokens_can_be_left_out():
    vocabulary = micro_vocabulary()
    assert vocabulary.decode(vocabulary.encode("It is[SEG].<|endoftext|>"), keep_special=False) == "It is."


def test_training_is_the_same_every_time_and_survives_json():
    first, second = (Vocabulary.train(iter(TEXTS), 330, 3) for _ in range(2))
    assert first.to_json() == second.to_json()
    again = Vocabulary.from_json(first.to_json())
    assert again.to_json() == first.to_json()
    assert (again.prompt_ids, again.seg, len(again)) == (first.prompt_ids, first.seg, len(first))


def test_the_word_that_opens_a_turn_is_one_token():
    vocabulary = micro_vocabulary()
    opened = vocabulary.encode("<|im_start|>user\n")
    assert opened[0] == vocabulary.turn_start
    assert len(opened) == 3


def test_a_size_without_room_for_the_bytes_is_refused():
    with pytest.raises(ConfigError, match="Use 281 or more"):
        Vocabulary.train(TEXTS, 280, 15)


def test_without_words_for_pictures_there_is_room_for_others():
    plain, other = Vocabulary.train(TEXTS, 320, 3), Vocabulary.train(TEXTS, 320, 3, pictures=False)
    assert {"<vision>", "<vpatch>", "</vision>"} == {token for token in plain.ids() if token not in other.ids()}
    in_order = sorted(other.ids(), key=other.ids().__getitem__)
    assert in_order[-10:] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *added_tokens(3)]
    with pytest.raises(DataError, match="the tokenizer has no <vpatch>"):
        other.patch  # noqa: B018


def test_a_tokenizer_of_something_else_is_refused():
    broken = json.loads(micro_vocabulary().to_json())
    broken["added_tokens"] = [token for token in broken["added_tokens"] if token["content"] != "[SEG]"]
    with pytest.raises(DataError, match=r"no \[SEG\]"):
        Vocabulary.from_json(json.dumps(broken))


def test_a_base_keeps_its_ids_and_gets_what_it_lacks_behind_them(tmp_path):
    known = write_tokenizer(tmp_path)
    vocabulary = Vocabulary.from_qwen(tmp_path, 3)
    own = ["<vision>", "<vpatch>", "</vision>", *added_tokens(3)]
    ids = vocabulary.ids()
    assert [ids[token] for token in ADDED] == [known - len(ADDED) + i for i in range(len(ADDED))]
    assert [ids[token] for token in own] == [known + i for i in range(len(own))]
    assert len(vocabulary) == known + len(own)
    assert vocabulary.decode(vocabulary.encode("<tool_call>red<|im_end|>"), keep_special=False) == "<tool_call>red"


def test_it_is_the_tokenizer_that_transformers_makes_of_the_files(tmp_path):
    write_tokenizer(tmp_path / "old")
    config = tmp_path / "old" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "old")
    theirs.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / "vocab.json").exists()
    first, second = (Vocabulary.from_qwen(tmp_path / name, 3) for name in ("old", "new"))
    assert first.to_json() == second.to_json()
    text = "Please segment naïve 图 <tool_call> it's 12\n\n <|im_end|> 🤗"
    assert first.encode(text) == theirs(text).input_ids


def gap(folder: Path) -> None:
    path = folder / "vocab.json"
    pieces = json.loads(path.read_text())
    del pieces[max(pieces, key=pieces.get)]
    path.write_text(json.dumps(pieces | {"zz": 5000}))


def strange_merge(folder: Path) -> None:
    (folder / "merges.txt").write_text("#version: 0.2\na nothing\n")


def no_pairs(folder: Path) -> None:
    (folder / "merges.txt").write_text("a b c\n")


def other_words(folder: Path) -> None:
    (folder / "vocab.json").unlink()
    content = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": {"type": "Whitespace"}}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def far_away(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"9999": {"content": "<|endoftext|>"}}}')


def two_texts(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"<other>": len(json.loads((folder / "vocab.json").read_text()))}))


def no_text(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"300": {"special": true}}}')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (gap, "not numbered from 0 without a gap"),
        (strange_merge, "is of no pieces that there are"),
        (no_pairs, "its merges are not pairs"),
        (other_words, "no byte-level BPE over the words of Qwen2"),
        (far_away, "do not follow its pieces"),
        (two_texts, "is '<other>' here and another in another file"),
        (no_text, "lacks id or text"),
    ],
)
def test_a_damaged_tokenizer_is_told_in_a_line(tmp_path, damage, says):
    write_tokenizer(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=says) as told:
        Vocabulary.from_qwen(tmp_path, 3)
    assert "\n" not in str(told.value)


def test_a_folder_without_merges_is_named(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"merges\.txt"):
        Vocabulary.from_qwen(tmp_path, 15)


@pytest.mark.sample
def test_qwen_files_encode_as_the_official_tokenizer():
    qwen = sample_of("qwen2_tokenizer__Qwen")
    vocabulary = Vocabulary.from_qwen(qwen, 15)
    for case in json.loads((qwen / "expected_encodings.json").read_text()):
        assert vocabulary.encode(case["text"]) == case["ids"]
    assert (vocabulary.end_of_text, vocabulary.turn_start, vocabulary.turn_end) == (151643, 151644, 151645)
    assert vocabulary.seg == 151649
    assert len(vocabulary) == 151643 + 6 + 19
