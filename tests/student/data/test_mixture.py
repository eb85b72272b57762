"""How often an epoch shows what, in which order, and what of it follows from the position alone."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from pydantic import ValidationError

from schemas.errors import ConfigError
from student.data.mixture import Mixture, Order

SIZES = {"caption/pix2cap": 10, "segmentation/refcoco": 40, "segmentation/refcoco+": 20, "choice": 5}
PART_N = np.array([0] * 3 + [1] * 8 + [2] * 5)


def epoch_of(order: Order, epoch: int) -> list[int]:
    return [visit.sample for visit in order.between(epoch * order.size, (epoch + 1) * order.size)]


def test_every_epoch_shows_every_sample_once_in_its_own_order():
    order = Order(seed=3, size=7)
    epochs = [epoch_of(order, epoch) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [visit.sample for visit in Order(3, 7).between(0, 21)] == list(chain(*epochs))
    assert [visit.sample for visit in Order(4, 7).between(0, 21)] != list(chain(*epochs))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_number_of_workers_does_not_change_the_order(workers: int):
    order, batch = Order(0, 16, PART_N, [2.0, 0.5, 1.4]), 8
    seen = [
        order.between(step * batch + rank * batch // workers, step * batch + (rank + 1) * batch // workers)
        for step in range(9)
        for rank in range(workers)
    ]
    assert list(chain(*seen)) == order.between(0, 9 * batch)


def test_one_who_goes_on_in_the_middle_of_an_epoch_sees_the_rest_of_it():
    whole = Order(5, 16, PART_N, [2.0, 0.5, 1.4]).between(0, 60)
    assert Order(5, 16, PART_N, [2.0, 0.5, 1.4]).between(37, 60) == whole[37:]


def test_repeats_show_a_part_so_often_and_number_the_showings():
    order = Order(0, 16, PART_N, [3.0, 1.0, 0.0])
    assert order.size == 3 * 3 + 8
    for epoch in range(3):
        visits = order.between(epoch * order.size, (epoch + 1) * order.size)
        assert Counter(visit.sample for visit in visits) == dict.fromkeys(range(3), 3) | dict.fromkeys(range(3, 11), 1)
        assert sorted(visit.showing for visit in visits if visit.sample == 0) == [0, 1, 2]
        assert {visit.epoch for visit in visits} == {epoch}
        assert len(set(visits)) == len(visits)


def test_a_fraction_shows_others_each_time_until_all_had_their_turn_equally_often():
    order = Order(2, 16, PART_N, [1.0, 0.25, 1.4])
    assert order.size == 3 + 2 + 5 + 2
    epochs = [Counter(epoch_of(order, epoch)) for epoch in range(20)]
    eighths = [frozenset(sample for sample in epoch if 3 <= sample < 11) for epoch in epochs]
    assert all(len(chosen) == 2 for chosen in eighths)
    assert len(set(eighths[:4])) == 4
    assert frozenset.union(*eighths[:4]) == set(range(3, 11))
    total = Counter(chain.from_iterable(epoch.elements() for epoch in epochs))
    assert {total[sample] for sample in range(3, 11)} == {5}
    assert {total[sample] for sample in range(11, 16)} == {28}


def test_a_name_stands_for_all_parts_that_begin_with_it_and_the_longest_counts():
    times = Mixture(repeats={"segmentation": 4, "segmentation/refcoco+": 0.5}).times(SIZES)
    assert times == {"caption/pix2cap": 1, "segmentation/refcoco": 4, "segmentation/refcoco+": 0.5, "choice": 1}


@pytest.mark.parametrize("times", [1.0, 3.0, 0.5, 2.5, 0.3])
def test_of_a_unit_the_samples_take_turns_and_it_is_shown_as_often_as_any_other(times: float):
    unit_N = np.array([0, 1, 0, 2, 0, 3, 3])  # of one part; those of unit 0 are samples 0, 2 and 4
    order, epochs = Order(4, 7, None, [times], unit_N), 60
    visits = order.between(0, epochs * order.size)
    units = Counter(unit_N[visit.sample] for visit in visits)
    assert order.size == round(4 * times) and max(units.values()) - min(units.values()) <= 1
    for unit in range(4):
        shown = Counter(visit.sample for visit in visits if unit_N[visit.sample] == unit)
        assert set(shown) == set(np.flatnonzero(unit_N == unit)) and max(shown.values()) - min(shown.values()) <= 1
    assert len(set(visits)) == len(visits)


def test_weights_share_out_an_epoch_of_as_many_samples_as_there_are():
    times = Mixture(weights={"segmentation": 3, "caption": 1, "choice": 0}).times(SIZES)
    shown = {part: times[part] * size for part, size in SIZES.items()}
    assert times["segmentation/refcoco"] == times["segmentation/refcoco+"]
    assert shown["choice"] == 0
    assert sum(shown.values()) == pytest.approx(75)
    assert shown["caption/pix2cap"] == pytest.approx(75 / 4)


def test_the_weight_of_a_part_that_lost_its_samples_goes_to_the_others():
    times = Mixture(weights={"caption": 1, "choice": 1}).times({"caption": 4, "choice": 0})
    assert times == {"caption": 1, "choice": 0}


@pytest.mark.parametrize("way", ["repeats", "weights"])
def test_a_name_of_no_part_is_refused_with_those_there_are(way: str):
    known = "caption, caption/pix2cap, choice, segmentation, segmentation/refcoco, segmentation/refcoco\\+"
    with pytest.raises(ConfigError, match=f"no samples of segmentation/ref, refcoco. Known: {known}\\."):
        Mixture(**{way: {"segmentation/ref": 2, "refcoco": 1, "caption": 1}}).times(SIZES)


def test_a_part_without_a_weight_is_refused():
    with pytest.raises(ConfigError, match="no weight for choice"):
        Mixture(weights={"segmentation": 1, "caption": 1}).times(SIZES)


def test_an_epoch_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="shows none of the 16 samples"):
        Order(0, 16, PART_N, [0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    "said",
    [
        {"repeats": {"a": -1}},
        {"repeats": {"a": float("nan")}},
        {"repeats": {"a": 1}, "weights": {"a": 1}},
        {"weights": {"a": 1}, "per": "picture"},
    ],
)
def test_a_mixture_that_means_nothing_is_refused(said: dict):
    with pytest.raises(ValidationError):
        Mixture(**said)
