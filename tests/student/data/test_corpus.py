"""Artifacts zipped by key, samples in an order that follows from the seed, and work done ahead by other threads."""

import threading
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from schemas import tables
from schemas.artifact import Artifact
from schemas.cache import Cache
from schemas.errors import BrokenArtifact, DataError
from schemas.storage import Folder
from student.data.ahead import ahead
from student.data.corpus import Corpus
from student.data.mixture import Mixture
from student.data.pictures import PictureReader
from student.data.samples import encode_question
from student.data.visits import Visit
from student.sequence import IGNORED
from tests.student.endpoint import requests
from tests.student.micro import micro_config, micro_vocabulary
from tests.student.stores import SPECS, Store, image_row, sealed, write_store


def open_corpus(store: Store, **changes: Any) -> Corpus:
    parts = {"samples": store.samples, "images": store.images, "features": store.features}
    return Corpus(**{**parts, "vocabulary": micro_vocabulary(), "config": micro_config(), **changes})


def remade(artifact: Artifact, folder: Folder, change: Callable[[int, pa.Table], pa.Table]) -> Artifact:
    """The artifact with each shard put through `change`."""
    assert artifact.table
    return sealed(folder, artifact.name, artifact.table, [change(k, rows) for k, rows in enumerate(artifact.iterate())])


def with_column(rows: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = rows.schema.get_field_index(name)
    return rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type))


def test_a_sample_comes_with_its_picture_and_its_features(store: Folder, rng: np.random.Generator):
    made = write_store(store, rng, pictures=4)
    corpus = open_corpus(made, split="evaluation")
    assert [corpus.sample(i).task for i in range(len(corpus))] == ["segmentation", "caption", "choice"] * 2
    for number in range(len(corpus)):
        example, sample, shard = corpus[number], corpus.sample(number), number // 3
        row = made.images.read(shard)["image_key"].to_pylist().index(sample.image_key)
        height, width = made.images.read(shard)["height"][row].as_py(), made.images.read(shard)["width"][row].as_py()
        assert corpus.picture(number).shape == (height, width, 3)
        assert example.sample_id == sample.sample_id
        assert len(example.masks_nHW) == len(sample.masks)
        for name, spec in SPECS.items():
            stored = made.features[name].read(shard)["feature"][row].as_py()
            assert np.array_equal(example.features[name].values.float().numpy(), spec.decode(stored, *spec.grid))


def test_a_picture_that_was_just_read_is_not_decoded_again(small_store: Store):
    reader = PictureReader(small_store.images, cache_bytes=2 * 64 * 64 * 3)
    first = reader.read(0, 0)
    assert reader.read(0, 0) is first
    for row in range(4):
        reader.read(1, row)
    again = reader.read(0, 0)
    assert again is not first
    assert np.array_equal(again, first)


def test_training_and_evaluation_share_no_picture(small_store: Store):
    train, evaluation = open_corpus(small_store), open_corpus(small_store, split="evaluation")
    assert (len(train), len(evaluation)) == (18, 6)
    keys = [{corpus.sample(i).image_key for i in range(len(corpus))} for corpus in (train, evaluation)]
    assert not keys[0] & keys[1]


def test_a_picture_with_evaluation_samples_is_left_out_of_training(small_store: Store):
    def leak(shard: int, rows: pa.Table) -> pa.Table:
        return with_column(rows, "split", ["train", "train", "evaluation", *rows["split"].to_pylist()[3:]])

    corpus = open_corpus(small_store, samples=remade(small_store.samples, small_store.folder.child("leaky"), leak))
    assert len(corpus) == 12
    assert corpus.dropped == {"evaluated": 4}


def test_samples_of_failed_rows_are_left_out_and_counted(small_store: Store):
    table, folder = small_store.features["sam2"].table, small_store.folder.child("failed")
    assert table

    def failing(shard: int, rows: pa.Table) -> pa.Table:
        errors = ["data: broken" if row == shard else None for row in range(len(rows))]
        blank = [None if error else value for error, value in zip(errors, rows["feature"].to_pylist(), strict=True)]
        return with_column(with_column(rows, "feature", blank), "error", errors)

    def first_fails(shard: int, rows: pa.Table) -> pa.Table:
        return with_column(rows, "error", ["data: broken" if shard == row == 0 else None for row in range(len(rows))])

    features = small_store.features | {"sam2": remade(small_store.features["sam2"], folder, failing)}
    corpus = open_corpus(small_store, features=features, images=remade(small_store.images, folder, first_fails))
    assert corpus.dropped == {"picture": 3, "sam2": 3}
    assert len(corpus) == 12


def test_failed_rows_are_refused_where_they_may_not_be_skipped(small_store: Store):
    def failing(shard: int, rows: pa.Table) -> pa.Table:
        blank = [None if row in (1, 3) else value for row, value in enumerate(rows["feature"].to_pylist())]
        return with_column(rows, "feature", blank)

    assert open_corpus(small_store, nonmatch="error").dropped == {}
    features = small_store.features | {"sam2": remade(small_store.features["sam2"], small_store.folder.child("f"), failing)}
    key = small_store.images.read(0)["image_key"][1]
    with pytest.raises(DataError, match=f"6 samples lack something, first the sam2 of {key} in shard 0, row 1"):
        open_corpus(small_store, features=features, nonmatch="error")
    assert open_corpus(small_store, features=features).dropped == {"sam2": 6}


def test_several_samples_come_in_the_order_that_was_asked_for(store: Folder, rng: np.random.Generator):
    corpus = open_corpus(write_store(store, rng))
    wanted = [Visit(7), Visit(0, epoch=2), Visit(17), Visit(7)]
    for example, visit in zip(corpus.examples(wanted), wanted, strict=True):
        alone = corpus.example(visit)
        assert example.sample_id == alone.sample_id
        assert np.array_equal(example.patches_NP, alone.patches_NP)
        assert np.array_equal(example.tokens_L, alone.tokens_L)
        assert all(torch.equal(example.features[name].values, alone.features[name].values) for name in SPECS)


def with_long_answer(samples: Artifact, folder: Folder) -> Artifact:
    """The samples, of which the caption of the first picture says more than anybody reads."""

    def change(shard: int, rows: pa.Table) -> pa.Table:
        turns = rows["turns"].to_pylist()
        if shard == 0:
            turns[1][0]["answer"] *= 40
        return with_column(rows, "turns", turns)

    return remade(samples, folder, change)


def test_by_the_picture_each_is_shown_as_often_however_many_dialogues_it_has(small_store: Store):
    def grown(shard: int, rows: pa.Table) -> pa.Table:
        """The first picture of the first shard has three dialogues of captions; segmentation is conversation, twice."""
        tasks = rows.column("task").to_pylist()
        first = tasks.index("caption") if shard == 0 else -1
        again = [n for n, task in enumerate(tasks) for _ in range(3 if n == first else 2 if task == "segmentation" else 1)]
        named = {"segmentation": "conversation"}
        taken = rows.take(pa.array(again))
        return with_column(taken, "task", [named.get(task, task) for task in taken.column("task").to_pylist()])

    corpus = open_corpus(small_store, samples=remade(small_store.samples, small_store.folder.child("grown"), grown))
    order = corpus.order(0, Mixture(repeats={"caption": 3}, per="picture"))
    visits = order.between(0, 5 * order.size)
    shown = Counter((corpus.sample(visit.sample).task, corpus.sample(visit.sample).image_key) for visit in visits)
    assert {task: {count for (own, _), count in shown.items() if own == task} for task, _ in shown} == {
        "caption": {15},
        "choice": {5},
        "conversation": {10},
    }
    assert len({visit.sample for visit in visits}) == len(corpus)


def test_what_is_too_long_is_left_out_and_nothing_else(small_store: Store):
    samples, short = with_long_answer(small_store.samples, small_store.folder.child("long")), micro_config(max_length=150)
    corpus = open_corpus(small_store, samples=samples, config=short)
    visits = [Visit(number) for number in range(4)]
    assert [example.sample_id for example in corpus.examples(visits)] == [corpus.sample(n).sample_id for n in (0, 2, 3)]
    assert corpus.examples(visits[1:2]) == []
    with pytest.raises(DataError, match=f"{corpus.sample(1).sample_id}: the first turn ends at token .* of 150"):
        open_corpus(small_store, samples=samples, config=short, nonmatch="error").examples(visits)
    without = remade(
        samples, small_store.folder.child("bare"), lambda shard, rows: with_column(rows, "masks", [[]] * len(rows))
    )
    with pytest.raises(DataError, match=r"2 \[SEG\] in the answers but 0 masks"):
        open_corpus(small_store, samples=without, config=short).examples(visits[1:])  # segmentation is the last of them


def test_the_second_epoch_of_a_remote_store_asks_for_nothing(s3_bucket: str, rng: np.random.Generator, tmp_path: Path):
    folder = Folder(f"{s3_bucket}/{uuid.uuid4().hex}")
    corpus = open_corpus(write_store(folder, rng), feature_cache=Cache(tmp_path, 1 << 20))
    order = corpus.order(0, Mixture())
    epochs = []
    for epoch in range(2):
        steps = [order.between(start, start + 6) for start in range(18 * epoch, 18 * epoch + 18, 6)]
        with requests(folder) as sent, closing(ahead(corpus.examples, steps, threads=2)) as coming:
            seen = {example.sample_id: example for examples in coming for example in examples}
        epochs.append((seen, len(sent)))
    (first, asked), (second, asked_again) = epochs
    assert asked > 0
    assert asked_again == 0
    assert len(first) == len(second) == 18
    for sample_id, example in first.items():
        again = second[sample_id].features
        assert all(torch.equal(each.values, again[name].values) for name, each in example.features.items())


def test_of_a_remote_picture_no_more_is_asked_for_than_is_read(s3_bucket: str, rng: np.random.Generator):
    folder = Folder(f"{s3_bucket}/{uuid.uuid4().hex}")
    rows = [image_row(rng, f"{number:032x}") for number in range(8)]
    reader = PictureReader(sealed(folder, "images", tables.IMAGES, [tables.IMAGES.rows(rows)]), cache_bytes=0)
    with requests(folder) as sent:
        reader.read(0, 3)
        first = len(sent)
        reader.read(0, 5)
    (asked,) = sent[first:]
    assert asked < len(rows[5]["bytes"]) + 300, "only its own bytes, key and digest, at once, where the footer is known"


def test_a_shuffled_feature_shard_is_refused(small_store: Store):
    turned = lambda shard, rows: rows.take([0, 2, 1, 3]) if shard else rows  # noqa: E731
    features = {"sam2": remade(small_store.features["sam2"], small_store.folder.child("shuffled"), turned)}
    with pytest.raises(BrokenArtifact, match=r"shuffled/features/sam2: shard 1, row 1 is of picture"):
        open_corpus(small_store, features=features)


def test_a_feature_shard_of_other_length_is_refused(small_store: Store):
    cut = lambda shard, rows: rows.slice(0, 3) if shard else rows  # noqa: E731
    features = {"sam2": remade(small_store.features["sam2"], small_store.folder.child("cut"), cut)}
    with pytest.raises(BrokenArtifact, match="shard 1 has 3 rows, the pictures 4"):
        open_corpus(small_store, features=features)


def test_shuffled_samples_are_refused(small_store: Store):
    turned = lambda shard, rows: rows.take([3, 4, 5, 0, 1, 2, *range(6, 12)]) if shard else rows  # noqa: E731
    samples = remade(small_store.samples, small_store.folder.child("shuffled"), turned)
    with pytest.raises(BrokenArtifact, match="shard 1, row 3: picture .* comes before"):
        open_corpus(small_store, samples=samples)


def test_samples_of_another_shard_are_refused(small_store: Store):
    shards = list(small_store.samples.iterate())
    samples = remade(small_store.samples, small_store.folder.child("swapped"), lambda shard, _: shards[1 - shard])
    with pytest.raises(BrokenArtifact, match="shard 0, row 0: picture .* is not in this shard"):
        open_corpus(small_store, samples=samples)


def test_another_number_of_shards_is_refused(small_store: Store):
    shard = small_store.samples.read(0)
    samples = sealed(small_store.folder.child("fewer"), "samples", tables.SAMPLES, [shard])
    with pytest.raises(BrokenArtifact, match="1 shards, the pictures have 2"):
        open_corpus(small_store, samples=samples)


def test_training_shows_a_sample_otherwise_in_every_epoch_and_evaluation_never_does(small_store: Store):
    seen = {}
    for split in ("train", "evaluation"):
        corpus = open_corpus(small_store, split=split)
        visits = [Visit(0, 0, epoch, showing) for epoch in range(4) for showing in range(2)]
        seen[split] = {tuple(example.tokens_L) for example in corpus.examples(visits)}
    assert len(seen["train"]) > 1
    assert len(seen["evaluation"]) == 1


def test_a_part_is_a_task_or_what_a_data_set_says_for_it(small_store: Store):
    plain = open_corpus(small_store)
    assert plain.parts == ["caption", "choice", "segmentation"]
    assert [plain.parts[part] for part in plain.part_N] == [plain.sample(number).task for number in range(len(plain))]

    def sourced(shard: int, rows: pa.Table) -> pa.Table:
        return with_column(rows, "source", [f"set{number % 2}" for number in range(len(rows))])

    apart = open_corpus(small_store, samples=remade(small_store.samples, small_store.folder.child("sourced"), sourced))
    assert apart.parts == [f"{task}/set{number}" for task in plain.parts for number in range(2)]
    order = apart.order(0, Mixture(repeats={"choice": 0, "caption": 0, "segmentation/set1": 3}))
    shown = [apart.sample(visit.sample) for visit in order.between(0, order.size)]
    counted = Counter((sample.task, sample.source) for sample in shown)
    assert counted == {("segmentation", "set0"): 4, ("segmentation", "set1"): 6}


def test_a_question_leaves_the_last_answer_open(small_store: Store):
    corpus = open_corpus(small_store)
    sample, picture = corpus.sample(0), corpus.picture(0)
    asked = encode_question(corpus.vocabulary, corpus.config, sample, picture, prefix_answer="It is")
    told = corpus.vocabulary.decode(asked.tokens_L)
    assert told.endswith("a cat here.<|im_end|>\nIt is")
    assert "It is [SEG].<|endoftext|>" in told
    assert len(asked.masks_nHW) == 1
    alone = encode_question(corpus.vocabulary, corpus.config, replace(sample, turns=sample.turns[:1]), picture)
    assert (alone.labels_L == IGNORED).all()
    assert len(alone.masks_nHW) == 0


def test_work_is_done_ahead_in_order_and_within_bounds():
    started: list[int] = []

    def make(item: int) -> int:
        started.append(item)
        return item * item

    coming = ahead(make, range(100), depth=3, threads=2)
    assert [next(coming) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert max(started) <= 4 + 3
    coming.close()


def test_what_is_left_when_the_items_end_still_comes():
    assert list(ahead(str, range(3), depth=8)) == ["0", "1", "2"]


def test_an_error_ahead_is_raised_in_its_turn_and_the_threads_end():
    def make(item: int) -> int:
        if item == 2:
            raise DataError("bad", "item 2")
        return item

    coming = ahead(make, range(9))
    assert [next(coming), next(coming)] == [0, 1]
    with pytest.raises(DataError, match="item 2: bad"):
        next(coming)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_closing_ends_the_threads():
    coming = ahead(str, iter(range(1000)))
    assert next(coming) == "0"
    coming.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
