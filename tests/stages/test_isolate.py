"""Guilty rows are named at the least cost, innocent ones are kept, and what a row's error says can be read back."""

import math
import random
from collections.abc import Callable, Sequence

import pytest

from schemas.errors import BrokenArtifact, DataError, NonFinite
from schemas.row_errors import RowError
from stages.isolate import error_class, isolate, row_error_of


class Bench:
    """Doubles numbers, counts how often it is called, and fails as it is told."""

    def __init__(self, fault: Callable[[Sequence[int]], BaseException | None]):
        self.fault, self.calls, self.sizes = fault, 0, list[int]()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls += 1
        self.sizes.append(len(items))
        if error := self.fault(items):
            raise error
        return [2 * item for item in items]


def killed_by(*killers: int, error: type[BaseException] = ValueError) -> Bench:
    return Bench(lambda items: error("killed") if set(killers) & set(items) else None)


def named(found: list[int | BaseException]) -> set[int]:
    return {index for index, each in enumerate(found) if isinstance(each, BaseException)}


@pytest.mark.parametrize("error", [DataError, ValueError, RuntimeError])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 16, 31, 32, 33, 64])
def test_one_guilty_row_costs_the_logarithm_and_one(size: int, error: type[BaseException]):
    for killer in range(size):
        bench = killed_by(killer, error=error)
        found = isolate(range(size), bench)
        assert named(found) == {killer}
        assert [each for each in found if not isinstance(each, BaseException)] == [2 * i for i in range(size) if i != killer]
        assert bench.calls - 1 <= math.ceil(math.log2(size)) + 1


def test_nothing_is_called_more_than_once_where_nothing_fails():
    bench = killed_by()
    assert isolate(range(32), bench) == [2 * item for item in range(32)]
    assert isolate([], bench) == []
    assert bench.calls == 1


def test_a_killer_among_ten_thousand_costs_six_calls_at_a_batch_of_32():
    bench, made, items = killed_by(6789), [], range(10_000)
    for start in range(0, len(items), 32):
        made += isolate(items[start : start + 32], bench)
    assert named(made) == {6789}
    assert bench.calls - math.ceil(10_000 / 32) <= math.log2(32) + 1


def test_any_guilty_rows_are_named_and_no_others():
    draw = random.Random(0)
    for _ in range(300):
        size = draw.randint(1, 70)
        killers = draw.sample(range(size), draw.randint(0, min(size, 6)))
        bench = killed_by(*killers)
        found = isolate(range(size), bench)
        assert named(found) == set(killers)
        assert bench.calls <= 1 + len(killers) * (math.ceil(math.log2(size)) + 1)


@pytest.mark.parametrize("room", [1, 3, 8, 20])
def test_too_large_a_batch_condemns_no_row(room: int):
    bench = Bench(lambda items: MemoryError() if len(items) > room else None)
    assert isolate(range(32), bench) == [2 * item for item in range(32)]


def test_memory_that_comes_and_goes_condemns_only_what_failed_alone():
    draw = random.Random(1)
    for _ in range(200):
        killers, huge = set(draw.sample(range(40), 2)), draw.randrange(40)
        alone: set[int] = set()

        def fault(items: Sequence[int], killers=killers, huge=huge, alone=alone) -> BaseException | None:
            if huge in items or (len(items) > 1 and draw.random() < 0.3):
                alone.update(items if len(items) == 1 else ())
                return MemoryError()
            return DataError("killed") if killers & set(items) else None

        found = isolate(range(40), Bench(fault))
        assert named(found) == killers | {huge}
        assert {i for i, each in enumerate(found) if isinstance(each, MemoryError)} == alone == {huge}


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: device-side assert triggered"), OSError("store"), BrokenArtifact("x")]
)
def test_what_is_no_rows_fault_comes_out(error: BaseException):
    with pytest.raises(type(error)):
        isolate(range(8), Bench(lambda items: error if 3 in items else None))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("cut short"), "data"),
        (NonFinite("NaN"), "data"),
        (MemoryError(), "capacity"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "capacity"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "capacity"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "capacity"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "infra"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "infra"),
        (ConnectionResetError("reset by peer"), "infra"),
        (OSError("no space left on device"), "infra"),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), "code"),
        (ValueError("bad"), "code"),
    ],
)
def test_classes(error: BaseException, kind: str):
    assert error_class(error) == kind


def test_what_a_call_held_is_let_go_before_the_next():
    class Weight:
        held = 0

        def __init__(self) -> None:
            Weight.held += 1

        def __del__(self) -> None:
            Weight.held -= 1

    def work(items: Sequence[int]) -> list[int]:
        assert Weight.held == 0
        weight = Weight()
        if len(items) > 2:
            raise MemoryError(str(id(weight)))
        return list(items)

    assert isolate(range(16), work) == list(range(16))


# -- what the error of a row says --------------------------------------------------------------------------------------


def broken(depth: int) -> BaseException:
    def fall(left: int) -> None:
        if left:
            fall(left - 1)
        raise DataError("cut short\nafter 17 bytes")

    try:
        fall(depth)
    except DataError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "error",
    [
        RowError("data", "DataError: cut short", 1, "1a2b3c4d"),
        RowError("capacity", "MemoryError: [attempt] (1), trace", 12, "00000000"),
        RowError("code", "said before there were brackets"),
        RowError("data", "no way through the code is known", 3),
    ],
)
def test_a_row_error_is_read_back(error: RowError):
    assert RowError.parse(str(error)) == error


def test_a_row_error_is_one_line_with_a_trace():
    line = row_error_of(broken(1))
    assert line.startswith("data: DataError: cut short after 17 bytes [attempt 1, trace ")
    assert RowError.parse("data: planted") == RowError("data", "planted")
    assert RowError.parse("in nobody's words").message == "in nobody's words"


def test_one_fault_has_one_trace_in_a_batch_or_alone():
    def work(items: Sequence[int]) -> list[int]:
        if 5 in items:
            raise ValueError("five")
        if 9 in items:
            raise ValueError("nine")
        return list(items)

    lines = {
        row_error_of(error) for size in (6, 7, 8, 9) for error in isolate(range(size), work) if isinstance(error, ValueError)
    }
    assert len(lines) == 1
    nine = isolate([9], work)[0]
    assert isinstance(nine, ValueError)
    assert RowError.parse(row_error_of(nine)).trace != RowError.parse(lines.pop()).trace
