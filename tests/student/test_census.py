"""The counts of what training shows, held against the examples themselves."""

import numpy as np
import pyarrow as pa
import pytest

from schemas.errors import DataError
from student.census import census
from student.data import Corpus
from student.mixture import Mixture
from student.sequence import IGNORED
from tests.student.micro import micro_config
from tests.student.stores import Store
from tests.student.test_data import open_corpus, remade, with_column


def counted(corpus: Corpus, **mixture) -> dict:
    return census(corpus, corpus.order(1, Mixture(**mixture)), each=100)


def test_an_epoch_is_counted_as_it_is_shown(small_store: Store):
    corpus = open_corpus(small_store)
    found = counted(corpus, repeats={"segmentation": 2.5, "choice": 0})
    assert (found["epoch"], found["dropped"]) == (21, {})
    lines = found["parts"]
    assert [lines[name]["shown"] for name in ("segmentation", "caption", "choice")] == [15, 6, 0]
    assert [lines[name]["samples"] for name in ("segmentation", "caption", "choice")] == [6, 6, 6]
    assert [lines["segmentation"][what] for what in ("turns", "masks", "prompts")] == [30, 30, 0]
    assert [lines["caption"][what] for what in ("turns", "masks", "prompts")] == [6, 0, 6]


def test_tokens_are_those_of_the_examples(small_store: Store):
    corpus = open_corpus(small_store)
    for number, name in enumerate(corpus.parts):
        examples = [corpus[sample] for sample in np.flatnonzero(corpus.part_N == number).tolist()]
        line = counted(corpus)["parts"][name]
        mean, each = line["mean"], len(examples)
        assert line["looked_into"] == each
        assert mean["image_tokens"] == sum(len(example.patches_NP) + 2 for example in examples) / each
        assert mean["image_tokens"] + mean["text_tokens"] == sum(len(example.tokens_L) for example in examples) / each
        assert mean["supervised_tokens"] == sum((example.labels_L != IGNORED).sum() for example in examples) / each
        assert mean["hidden_prompts"] == mean["dropped_turns"] == 0


def test_turns_that_do_not_fit_and_prompts_under_others_are_told(small_store: Store):
    def twice(shard: int, rows: pa.Table) -> pa.Table:
        prompts = [[*slots, *({**slot, "index": 2} for slot in slots)] for slots in rows["prompts"].to_pylist()]
        return with_column(rows, "prompts", prompts)

    samples = remade(small_store.samples, small_store.folder.child("twice"), twice)
    lines = counted(open_corpus(small_store, samples=samples, config=micro_config(max_length=66)))["parts"]
    assert [lines[name]["mean"]["hidden_prompts"] for name in ("caption", "choice", "segmentation")] == [1, 1, 0]
    assert lines["segmentation"]["mean"]["dropped_turns"] > 0


def test_few_are_looked_into_and_a_part_that_lost_all_has_no_mean(small_store: Store):
    corpus = open_corpus(small_store)
    found = census(corpus, corpus.order(1, Mixture()), each=2)
    assert {line["looked_into"] for line in found["parts"].values()} == {2}
    assert found == census(corpus, corpus.order(1, Mixture()), each=2)

    def evaluated(shard: int, rows: pa.Table) -> pa.Table:
        tasks = rows["task"].to_pylist()
        return with_column(rows, "split", ["train" if task == "caption" else "evaluation" for task in tasks])

    folder = small_store.folder.child("lost")
    lost = open_corpus(small_store, samples=remade(small_store.samples, folder, evaluated))
    found = census(lost, lost.order(0, Mixture()))
    assert (found["epoch"], found["dropped"]) == (0, {"evaluated": 8})
    assert found["parts"]["caption"]["mean"] == {}


def test_a_dialogue_that_cannot_be_encoded_is_named(small_store: Store):
    with pytest.raises(DataError, match="the first turn ends at token"):
        counted(open_corpus(small_store, config=micro_config(max_length=8)))
