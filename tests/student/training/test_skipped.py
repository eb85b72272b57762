"""A sample that is too long is left out of its step and counted; what is left is learned from as ever."""

import json
from typing import Any

import pytest

from schemas.errors import DataError
from student.data.visits import Visit
from student.sequence import collate
from student.train_config import TrainConfig
from student.training.run import METRICS, Run
from student.training.saving import Saver
from student.training.train import train
from tests.student.data.test_corpus import with_long_answer
from tests.student.stores import Store
from tests.student.training.test_group import long_setup, skipped_in
from tests.student.training.test_train import Killed, files, kill_at, nothing, open_setup


@pytest.mark.parametrize("batch", [4, 1])
def test_a_sample_that_is_too_long_is_skipped_and_counted(small_store: Store, batch: int):
    """Also where it is all that a micro-batch has, or all that a step has."""
    with_long_answer(small_store.samples, small_store.folder.child("long"))
    setup = long_setup(small_store, TrainConfig(steps=36 // batch, batch=batch, micro_batch=1, checkpoint_every=2, log_every=1))
    expected, folders = skipped_in(setup), [small_store.folder.child(name) for name in ("through", "broken")]
    summary = train(setup, folders[0], nothing)
    with pytest.raises(Killed):
        train(setup, folders[1], kill_at(expected.index(1) + 1))
    train(setup, folders[1], nothing)
    assert files(folders[0]) == files(folders[1])
    rows = [json.loads(line) for line in folders[0].read(METRICS).splitlines()]
    assert [row["skipped"] for row in rows] == expected
    assert summary["skipped"] == sum(expected) == 2
    assert [row["samples"] for row in rows] == list(range(batch, 37, batch))
    assert all((row["tokens"] == 0) == (batch == row["skipped"]) for row in rows)
    assert all((row["total"] == 0) == (batch == row["skipped"]) for row in rows)
    with pytest.raises(DataError, match="caption-0: the first turn ends at token .* of 150"):
        train(long_setup(small_store, setup.train, nonmatch="error"), small_store.folder.child("refused"), nothing)


def test_a_skipped_sample_moves_nothing(small_store: Store):
    """The losses of a step are those of the samples that are there."""
    with_long_answer(small_store.samples, small_store.folder.child("long"))
    setup = long_setup(
        small_store,
        TrainConfig(steps=1, batch=4, micro_batch=4),
    )
    visits = [Visit(number) for number in (0, 1, 2, 3)]
    rows = []
    for chosen in (visits, [visits[0], *visits[2:]]):
        with Saver() as saver:
            run = Run.begin(setup, small_store.folder.child("run"), saver)
        rows.append(run.step(0, [(0, collate(setup.corpus.examples(chosen)))]))
    assert rows[0] == rows[1]
    assert rows[0]["skipped"] == 1


def test_what_will_be_shown_is_told_before_the_first_step(small_store: Store):
    told: list[dict[str, Any]] = []
    summary = train(open_setup(small_store), small_store.folder.child("run"), told.append)
    rows, line = told[0]["shown"]
    assert line.startswith("18 samples an epoch: ")
    assert {row["part"]: row["shown"] for row in rows} == {"caption": 6, "choice": 6, "segmentation": 6}
    assert [("shown" in row, row["step"]) for row in told] == [(True, 0), *((False, step) for step in range(1, 13))]
    run = {part: line["run"] for part, line in summary["shown"]["parts"].items()}
    assert run == {name.removeprefix("seen/"): count for name, count in told[-1].items() if name.startswith("seen/")}
    assert sum(run.values()) == 48
    again: list[dict[str, Any]] = []
    train(open_setup(small_store), small_store.folder.child("run"), again.append)
    assert again == [], "a finished run shows nothing more"
