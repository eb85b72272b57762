"""Items through a device that is a plain function here: order, memory, blame, and what is shown together."""

import math
import random
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from schemas.errors import DataError, NonFinite
from stages.deadline import heard_by
from stages.pipeline import Pipeline, same_shape


@dataclass(eq=False)
class Loaded:
    number: int


@dataclass
class Device:
    """Adds a thousand. Loads numbers, and counts how many of the loaded live at once and what it was shown."""

    killer: int | None = None
    error: BaseException = field(default_factory=lambda: RuntimeError("this one breaks the network"))
    living: int = 0
    most: int = 0
    shown: list[list[int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, number: int) -> Loaded:
        loaded = Loaded(number)
        weakref.finalize(loaded, self._count, -1)
        self._count(1)
        return loaded

    def _count(self, by: int) -> None:
        with self.lock:
            self.living += by
            self.most = max(self.most, self.living)

    def show(self, some: Sequence[Loaded]) -> list[Callable[[], tuple[Loaded, int]]]:
        self.shown.append([loaded.number for loaded in some])
        if self.killer in self.shown[-1]:
            raise self.error
        return [lambda loaded=loaded: (loaded, 1000 + loaded.number) for loaded in some]


def line(device: Device, *, load=None, keep=None, shape=lambda loaded: 0, batch: int = 4, threads: int = 3) -> Pipeline:
    return Pipeline(load or device.load, shape, device.show, keep or (lambda item, answer: answer[1]), batch, threads)


def odd_first(work: Callable) -> Callable:
    """The same work, each even number of which ends after the odd one that follows it, as threads may have it."""
    begun = [threading.Event() for _ in range(50)]

    def turned(number: int, *answer):
        begun[number].set()
        if number % 2 == 0:
            begun[number + 1].wait()
        return work(number, *answer)

    return turned


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_one_result_an_item_in_order_whatever_thread_is_first(batch, threads):
    def answered(number: int, answer: tuple[Loaded, int]) -> tuple[int, int]:
        return number, answer[1]

    def run(threads: int, shapes: int = 1, load: Callable = lambda work: work, keep: Callable = lambda work: work):
        device = Device()
        made = line(
            device,
            load=load(device.load),
            keep=keep(answered),
            shape=lambda each: each.number % shapes,
            batch=batch,
            threads=threads,
        )(range(50))
        assert made == [(number, 1000 + number) for number in range(50)]
        return device.shown

    assert run(threads, shapes=3, load=odd_first) == run(1, shapes=3)
    assert run(threads, keep=odd_first) == run(1)


def test_no_items_are_no_results():
    assert line(Device())([]) == []


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_few_items_are_on_their_way_at_once(batch):
    device = Device()
    made = line(device, shape=lambda each: each.number % 97, batch=batch, threads=2)(range(1000))
    assert made == list(range(1000, 2000))
    assert device.most <= 14 * max(batch, 2)


def test_the_next_batch_is_shown_before_the_last_is_waited_for():
    events: list[str] = []

    def show(some: Sequence[int]) -> list[Callable[[], int]]:
        events.append(f"show {some[0]}")
        return [lambda: events.append(f"wait {some[0]}") or some[0]]

    line = Pipeline(lambda item: item, lambda item: 0, show, lambda item, answer: answer)
    assert line(range(3)) == [0, 1, 2]
    assert events == ["show 0", "show 1", "wait 0", "show 2", "wait 1", "wait 2"]


@pytest.mark.parametrize("broken", ["load", "keep"])
def test_what_cannot_be_loaded_or_kept_fails_alone(broken):
    device = Device()

    def load(number: int) -> Loaded:
        if broken == "load" and number == 7:
            raise DataError("cut short")
        return device.load(number)

    def keep(number: int, answer: tuple[Loaded, int]) -> int:
        if broken == "keep" and number == 7:
            raise NonFinite("NaN")
        return answer[1]

    made = line(device, load=load, keep=keep)(range(20))
    assert isinstance(made[7], DataError if broken == "load" else NonFinite)
    assert [each for each in made if isinstance(each, int)] == [1000 + number for number in range(20) if number != 7]
    assert len(device.shown) == 5, "a picture that fails by itself costs no other a second look"


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_what_breaks_its_batch_is_isolated(batch):
    device = Device(killer=21)
    made = line(device, batch=batch)(range(64))
    assert [number for number, each in enumerate(made) if isinstance(each, RuntimeError)] == [21]
    assert [each for each in made if isinstance(each, int)] == [1000 + number for number in range(64) if number != 21]
    assert len(device.shown) - 64 // batch <= math.log2(batch) + 1


@pytest.mark.parametrize(
    "breaks",
    [
        pytest.param(lambda device: len(device.shown) == 2, id="once"),
        pytest.param(lambda device: {18, 21} <= set(device.shown[-1]), id="two together"),
        pytest.param(lambda device: len(device.shown[-1]) > 5, id="too many at once"),
    ],
)
def test_what_breaks_a_batch_but_no_item_alone_costs_none(breaks):
    class Moody(Device):
        def show(self, some: Sequence[Loaded]) -> list[Callable[[], tuple[Loaded, int]]]:
            shown = super().show(some)
            if breaks(self):
                raise RuntimeError("not with these")
            return shown

    assert line(Moody(), batch=16)(range(64)) == list(range(1000, 1064))


@pytest.mark.parametrize("broken", ["load", "show", "keep"])
def test_what_is_no_items_fault_comes_out(broken):
    def fail(*item: object) -> None:
        raise OSError("the store is gone")

    device = Device(killer=9 if broken == "show" else None, error=OSError("the store is gone"))
    with pytest.raises(OSError, match="the store is gone"):
        line(device, **{broken: fail} if broken != "show" else {})(range(40))


def test_it_lives_as_long_as_batches_end():
    beats: list[int] = []
    with heard_by(lambda: beats.append(1)):
        line(Device(), batch=4)(range(40))
    assert len(beats) == 10


def test_groups_are_of_one_shape_and_full_where_they_can_be():
    assert ["".join(group) for group in same_shape("aabacbaab", str, 3, most=100)] == ["aaa", "bbb", "c", "aa"]


def test_a_shape_that_is_rare_does_not_wait_for_long():
    assert ["".join(group) for group in same_shape("xaabbab", str, 3, most=4)] == ["x", "aaa", "bbb"]


def test_every_item_is_in_one_group():
    draw = random.Random(0)
    for _ in range(100):
        items = [(draw.randrange(6), number) for number in range(draw.randint(0, 60))]
        batch, most = draw.randint(1, 6), draw.randint(1, 12)
        groups = list(same_shape(items, lambda item: item[0], batch, most))
        assert sorted(item for group in groups for item in group) == sorted(items)
        assert all(0 < len(group) <= batch and len({shape for shape, _ in group}) == 1 for group in groups)
