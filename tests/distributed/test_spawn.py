"""The spawn helper itself: it must never hide a failure nor leave a process behind."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed.spawn import run_ranks


def raise_on_rank_1():
    if dist.get_rank() == 1:
        raise ValueError("the reason")
    dist.all_reduce(torch.zeros(1))


def test_the_traceback_of_a_rank_reaches_the_test():
    with pytest.raises(AssertionError, match=r"rank 1: Traceback(.|\n)*raise_on_rank_1(.|\n)*the reason"):
        run_ranks(2, raise_on_rank_1)


def sleep():
    time.sleep(60)


def test_the_timeout_kills():
    started = time.monotonic()
    with pytest.raises(AssertionError, match="rank 1: still running after 1 s"):
        run_ranks(2, sleep, timeout=1)
    assert time.monotonic() - started < 30


def kill_rank_1():
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_rank_is_named():
    with pytest.raises(AssertionError, match="rank 1: died without a word"):
        run_ranks(2, kill_rank_1)


def change(tensor):
    tensor += dist.get_rank() + 1
    return tensor


def test_ranks_share_no_memory_with_each_other_or_the_test():
    tensor = torch.zeros(2)
    assert [result.tolist() for result in run_ranks(2, change, tensor)] == [[1, 1], [2, 2]]
    assert tensor.tolist() == [0, 0]
