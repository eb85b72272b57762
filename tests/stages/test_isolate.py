"""Guilty rows are named at the least cost, innocent ones are kept, and what a row's error says can be read back."""

import http.client
import itertools
import math
import random
import socket
from collections.abc import Callable, Sequence

import aiohttp
import botocore.exceptions
import pytest
import s3fs
import torch

from schemas.errors import BrokenArtifact, DataError, NonFinite, SailyardError
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


def bar(size: int) -> int:
    """How many calls one guilty item may cost beyond the first."""
    return math.ceil(math.log2(size)) + 1


def named(found: list[int | BaseException]) -> set[int]:
    return {index for index, each in enumerate(found) if isinstance(each, BaseException)}


@pytest.mark.parametrize("error", [DataError, ValueError, RuntimeError])
@pytest.mark.parametrize("size", [*range(1, 34), 64])
def test_one_guilty_row_costs_the_logarithm_and_one(size: int, error: type[BaseException]):
    for killer in range(size):
        bench = killed_by(killer, error=error)
        found = isolate(range(size), bench)
        assert named(found) == {killer}
        assert [each for each in found if not isinstance(each, BaseException)] == [2 * i for i in range(size) if i != killer]
        assert bench.calls - 1 <= bar(size)


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
        assert bench.calls <= 1 + len(killers) * bar(size) + 3 * max(len(killers) - 1, 0)


@pytest.mark.parametrize(("count", "sizes"), [(2, range(2, 34)), (3, range(3, 17))])
def test_two_and_three_guilty_rows_are_named_wherever_they_stand(count: int, sizes: range):
    for size in sizes:
        for killers in itertools.combinations(range(size), count):
            bench = killed_by(*killers)
            found = isolate(range(size), bench)
            assert named(found) == set(killers)
            assert [each for each in found if not isinstance(each, BaseException)] == [
                2 * i for i in range(size) if i not in killers
            ]
            assert bench.calls - 1 <= count * bar(size) + 3 * (count - 1)


# -- faults that are no single row's -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "strikes"), [*((size, 1) for size in range(2, 34)), *((size, 2) for size in range(4, 34))])
def test_a_fault_that_does_not_come_again_condemns_no_row(size: int, strikes: int):
    bench = Bench(lambda items: RuntimeError("a hiccup") if bench.calls <= strikes else None)
    assert isolate(range(size), bench) == [2 * item for item in range(size)]
    assert bench.calls - 1 <= bar(size)


@pytest.mark.parametrize("size", range(2, 33))
def test_a_fault_of_two_rows_together_condemns_neither_and_no_other(size: int):
    for pair in itertools.combinations(range(size), 2):
        bench = Bench(lambda items, pair=pair: ValueError("shapes do not fit") if set(pair) <= set(items) else None)
        assert isolate(range(size), bench) == [2 * item for item in range(size)]


@pytest.mark.parametrize("room", range(1, 32))
def test_more_rows_than_a_kernel_takes_condemn_none(room: int):
    bench = Bench(lambda items: RuntimeError("must fit into 32-bit index math") if len(items) > room else None)
    assert isolate(range(32), bench) == [2 * item for item in range(32)]


def test_whoever_is_named_failed_alone_or_where_another_in_its_place_passed():
    for killer in range(16):
        failed, passed = list[set[int]](), list[set[int]]()

        def work(items: Sequence[int], killer=killer, failed=failed, passed=passed) -> list[int]:
            (failed if killer in items else passed).append(set(items))
            if killer in items:
                raise ValueError("killed")
            return list(items)

        isolate(range(16), work)
        company = failed[-1] - {killer}
        assert not company or any(company < group and len(group) == len(failed[-1]) for group in passed)
        assert len(failed) >= (3 if company else 2)


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


# -- whose fault it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        OSError("store"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://store"),
        *(kind("x") for kind in SailyardError.__subclasses__() if kind not in (DataError, NonFinite)),
    ],
)
def test_what_is_no_rows_fault_comes_out(error: BaseException):
    bench = Bench(lambda items: error if 3 in items else None)
    with pytest.raises(type(error)) as raised:
        isolate(range(8), bench)
    assert raised.value is error and bench.calls == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DataError("cut short"), "data"),
        (NonFinite("NaN"), "data"),
        (MemoryError(), "capacity"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "capacity"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "capacity"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "capacity"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "capacity"),
        (RuntimeError("unable to mmap 64 bytes from file </torch_1>: Cannot allocate memory (12)"), "capacity"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "infra"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "infra"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), "infra"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_MAPPING_ERROR"), "infra"),
        (RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"), "infra"),
        (RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu."), "infra"),
        (RuntimeError("Found no NVIDIA driver on your system."), "infra"),
        (RuntimeError("No CUDA GPUs are available"), "infra"),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"), "infra"),
        (RuntimeError("cusolver error: CUSOLVER_STATUS_NOT_INITIALIZED, when calling `cusolverDnCreate(handle)`"), "infra"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), "infra"),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), "infra"),
        (RuntimeError("NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp"), "infra"),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), "infra"),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="http://store"), "infra"),
        (botocore.exceptions.ConnectionClosedError(endpoint_url="http://store"), "infra"),
        (botocore.exceptions.ReadTimeoutError(endpoint_url="http://store"), "infra"),
        (botocore.exceptions.ResponseStreamingError(error="cut"), "infra"),
        (botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), "infra"),
        (botocore.exceptions.ClientError({"Error": {"Code": "SlowDown"}}, "GetObject"), "infra"),
        (aiohttp.ServerDisconnectedError(), "infra"),
        (aiohttp.ClientConnectionError("cut"), "infra"),
        (aiohttp.ClientPayloadError("cut"), "infra"),
        (http.client.IncompleteRead(b""), "infra"),
        (ConnectionResetError("reset by peer"), "infra"),
        (OSError("no space left on device"), "infra"),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), "code"),
        (ValueError("bad"), "code"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), "code"),
        (torch.linalg.LinAlgError("cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED, the matrix may contain NaN"), "code"),
        (botocore.exceptions.ParamValidationError(report="no such argument"), "code"),
        (aiohttp.InvalidURL("http:/"), "code"),
        (BrokenArtifact("a CUDA error, it says, out of memory"), "code"),
    ],
)
def test_classes(error: BaseException, kind: str):
    assert error_class(error) == kind


def test_a_store_that_does_not_answer_is_the_networks_fault():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    quick = {"retries": {"max_attempts": 0}, "connect_timeout": 5}
    address = f"http://127.0.0.1:{port}"
    store = s3fs.S3FileSystem(key="k", secret="s", endpoint_url=address, config_kwargs=quick, skip_instance_cache=True)
    with pytest.raises(botocore.exceptions.EndpointConnectionError) as raised:
        isolate(["a", "b"], lambda names: [store.cat_file(f"bucket/{name}") for name in names])
    assert error_class(raised.value) == "infra"


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
