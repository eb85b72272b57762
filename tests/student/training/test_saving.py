"""The loop goes on while its copies are written, one set at a time, and hears of what went wrong."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from student.training.saving import Copies, Saver


def test_the_loop_goes_on_while_what_it_copied_is_written():
    weights, written, may_write = torch.arange(4.0), [], threading.Event()

    def write(copies: Copies) -> None:
        may_write.wait(10)
        written.append(copies["weights"].tolist())

    with Saver() as saver:
        saver.save([("weights", weights)], write)
        weights.zero_()
        assert not written
        may_write.set()
    assert written == [[0, 1, 2, 3]]


def test_a_second_waits_for_the_first():
    began, may_end, order = threading.Event(), threading.Event(), []

    def first(copies: Copies) -> None:
        began.set()
        may_end.wait(10)
        order.append(copies["weight"].item())

    with Saver() as saver, ThreadPoolExecutor(1) as loop:
        saver.save([("weight", torch.tensor(1.0))], first)
        began.wait(10)
        second = loop.submit(saver.save, [("weight", torch.tensor(2.0))], lambda copies: order.append(copies["weight"].item()))
        assert not second.done()
        may_end.set()
        second.result(10)
    assert order == [1.0, 2.0]


@pytest.mark.parametrize("at_the_end", [True, False])
def test_what_went_wrong_is_raised_by_the_next(at_the_end: bool):
    def fail(copies: Copies) -> None:
        raise OSError("the disk is full")

    with Saver() as saver:
        saver.save([], fail)
        with pytest.raises(OSError, match="the disk is full"):
            saver.settle() if at_the_end else saver.save([], lambda copies: None)
        saver.settle()


@pytest.mark.gpu
def test_what_lies_on_a_gpu_may_change_at_once():
    weights, written = torch.arange(1 << 22, device="cuda", dtype=torch.float32), []
    with Saver() as saver:
        for _ in range(3):
            expected = weights.clone()
            saver.save([("weights", weights)], lambda copies: written.append(copies["weights"].clone()))
            weights.mul_(2)
            saver.settle()
            assert torch.equal(written[-1], expected.cpu())
