"""The counts of what training shows, held against the examples themselves."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from schemas.errors import DataError
from schemas.regions import Rle, box_mask
from schemas.tables import SAMPLES, plain, revive
from student.data.census import census, seen, told
from student.data.corpus import Corpus
from student.data.mixture import Mixture
from student.sequence import IGNORED
from tests.student.data.test_corpus import open_corpus, remade, with_column
from tests.student.eve.micro import eve_config
from tests.student.micro import micro_config
from tests.student.stores import Store, sealed


def counted(corpus: Corpus, **mixture) -> dict:
    return census(corpus, corpus.order(1, Mixture(**mixture)), until=30, each=100)


def test_an_epoch_is_counted_as_it_is_shown(small_store: Store):
    corpus = open_corpus(small_store)
    found = counted(corpus, repeats={"segmentation": 2.5, "choice": 0})
    assert (found["epoch"], found["dropped"]) == (21, {})
    lines = found["parts"]
    assert [lines[name]["shown"] for name in ("segmentation", "caption", "choice")] == [15, 6, 0]
    assert [lines[name]["samples"] for name in ("segmentation", "caption", "choice")] == [6, 6, 6]
    assert [lines["segmentation"][what] for what in ("turns", "masks", "prompts")] == [30, 30, 0]
    assert [lines["caption"][what] for what in ("turns", "masks", "prompts")] == [6, 0, 6]
    assert found["run"] == 30 == sum(line["run"] for line in lines.values())


def test_of_references_as_many_are_counted_as_a_visit_draws(small_store: Store):
    plain_corpus = open_corpus(small_store)

    def with_references(_: int, rows: pa.Table) -> pa.Table:
        kinds = rows.column("task").to_pylist()
        return with_column(rows, "references", [[0, 1] if task == "segmentation" else None for task in kinds])

    samples = remade(small_store.samples, small_store.folder.child("drawn"), with_references)
    corpus = open_corpus(small_store, samples=samples)
    lines, before = (counted(each)["parts"] for each in (corpus, plain_corpus))
    assert [lines["segmentation"][what] for what in ("turns", "masks", "prompts")] == [30, 30, 0]
    examples = [corpus[number] for number in np.flatnonzero(corpus.part_N == corpus.parts.index("segmentation"))]
    assert [len(example.masks_nHW) for example in examples] == [5] * 6
    assert lines["caption"] == before["caption"]
    later = ["levels", "references"]
    shards = [rows.drop_columns(later) for rows in small_store.samples.iterate()]
    older = sealed(small_store.folder.child("older"), "samples", replace(SAMPLES, schema=shards[0].schema), shards)
    assert counted(open_corpus(small_store, samples=older))["parts"] == before


def test_what_was_seen_is_counted_from_the_position_alone(small_store: Store):
    corpus = open_corpus(small_store)
    order, so_far = corpus.order(1, Mixture(repeats={"segmentation": 2.5, "choice": 0.5})), dict.fromkeys(corpus.parts, 0)
    for position in range(3 * order.size):
        assert seen(corpus, order, position) == so_far
        so_far[corpus.parts[corpus.part_N[order[position].sample]]] += 1


def test_a_census_is_told_as_a_table_and_a_line(small_store: Store):
    found = counted(open_corpus(small_store), repeats={"segmentation": 200, "choice": 0})
    rows, line = told(found)
    assert [(row["part"], row["shown"], row["samples"]) for row in rows] == [
        ("segmentation", 1200, 6),
        ("caption", 6, 6),
        ("choice", 0, 6),
    ]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rows[0]["text_tokens"] == found["parts"]["segmentation"]["mean"]["text_tokens"]
    assert line.startswith("1,206 samples an epoch: segmentation 1,200 of ")
    assert line.endswith(" tokens · 30 in the run")


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


def test_a_picture_of_evev2_has_a_token_before_it_and_one_behind_each_row(small_store: Store):
    corpus = open_corpus(small_store, config=eve_config())
    mean = counted(corpus)["parts"]["caption"]["mean"]
    examples = [corpus[sample] for sample in np.flatnonzero(corpus.part_N == corpus.parts.index("caption")).tolist()]
    rows = sum(1 + example.grid[0] * (example.grid[1] + 1) for example in examples)
    assert mean["image_tokens"] == rows / len(examples)
    assert mean["image_tokens"] + mean["text_tokens"] == sum(len(example.tokens_L) for example in examples) / len(examples)
    with pytest.raises(DataError, match=r"Raise student\.max_length, or lower student\.eve\.side"):
        counted(open_corpus(small_store, config=eve_config(max_length=8)))


def spot(region: dict) -> dict:
    """A region of the same picture that is its first pixel."""
    height, width = revive(Rle, region).mask().shape
    return plain(Rle.of(box_mask((0, 0, 1, 1), height, width)))


def test_turns_that_do_not_fit_and_prompts_under_others_are_told(small_store: Store):
    def twice(shard: int, rows: pa.Table) -> pa.Table:
        slots = [
            [{**slot, "rle": spot(slot["rle"]), "index": k} for slot in each for k in (0, 2)]
            for each in rows["prompts"].to_pylist()
        ]
        return with_column(rows, "prompts", slots)

    samples = remade(small_store.samples, small_store.folder.child("twice"), twice)
    lines = counted(open_corpus(small_store, samples=samples, config=micro_config(max_length=66)))["parts"]
    assert [lines[name]["mean"]["hidden_prompts"] for name in ("caption", "choice", "segmentation")] == [1, 1, 0]
    assert lines["segmentation"]["mean"]["dropped_turns"] > 0


def test_few_are_looked_into_and_a_part_that_lost_all_has_no_mean(small_store: Store):
    corpus = open_corpus(small_store)
    found = census(corpus, corpus.order(1, Mixture()), 0, each=2)
    assert {line["looked_into"] for line in found["parts"].values()} == {2}
    assert found == census(corpus, corpus.order(1, Mixture()), 0, each=2)

    def captions_leak(shard: int, rows: pa.Table) -> pa.Table:
        """Of each picture one dialogue, of the first a second one, for evaluation."""
        rows = rows.take([1, 2, *range(3, len(rows), 3)])
        return with_column(rows, "split", ["train", "evaluation", *["train"] * (len(rows) - 2)])

    folder = small_store.folder.child("lost")
    lost = open_corpus(small_store, samples=remade(small_store.samples, folder, captions_leak))
    found = census(lost, lost.order(0, Mixture()), 0)
    assert (found["epoch"], found["dropped"]) == (6, {"evaluated": 2})
    assert (found["parts"]["caption"]["mean"], found["parts"]["caption"]["samples"]) == ({}, 0)
    assert told(found)[1].endswith("caption 0 · 0 in the run · 2 left out: evaluated")


def test_samples_that_are_too_long_are_counted_and_of_these_alone_no_training_begins(small_store: Store):
    corpus = open_corpus(small_store)
    longest = max(len(corpus[n].tokens_L) for n in range(len(corpus)) if corpus.sample(n).task == "caption")
    line = counted(open_corpus(small_store, config=micro_config(max_length=longest - 1)))["parts"]["caption"]
    assert 0 < line["skipped"] < line["looked_into"] == 6
    assert line["mean"]["image_tokens"] + line["mean"]["text_tokens"] < longest
    with pytest.raises(DataError, match="no first turn of the samples that were looked into fits in 8 tokens. Raise"):
        counted(open_corpus(small_store, config=micro_config(max_length=8)))
    with pytest.raises(DataError, match="the first turn ends at token"):
        counted(open_corpus(small_store, config=micro_config(max_length=8), nonmatch="error"))
