"""What a world refuses, and how its ranks agree on a failure."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from eupmim_dist import hashing
from eupmim_dist.assemble import open_store
from eupmim_dist.data import store as stores
from eupmim_dist.data.manifest import read_manifest
from eupmim_dist.errors import UserError
from eupmim_dist.parallel import agreement
from eupmim_dist.parallel.agreement import RankFailed, agreed
from eupmim_dist.parallel.world import World, init_world, shutdown
from tests.distributed.spawn import run_ranks
from tests.stores import small_store

LAUNCHER = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def env(monkeypatch):
    for name in [*LAUNCHER, "LOCAL_WORLD_SIZE", "EUPMIM_WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"]:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_plain_process_is_one_rank_without_a_group(env):
    world = init_world(cpu=True)
    assert world == World(0, 1, 0, 1, torch.device("cpu"))
    assert world.is_main
    assert not dist.is_initialized()
    with agreed(world):
        pass
    with pytest.raises(KeyError), agreed(world):
        raise KeyError("x")
    shutdown(world)


def test_a_world_of_another_size_is_refused(env):
    env.setenv("EUPMIM_WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"4 ranks were asked for .* this world has 1.*--nproc 4"):
        init_world(cpu=True)


def test_the_quiet_single_process_of_accelerate_launch_is_refused(env):
    env.setenv("ACCELERATE_MIXED_PRECISION", "no")
    env.setenv("ACCELERATE_USE_CPU", "True")
    env.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match=r"eupmim-dist launch --cpu --nproc N"):
        init_world()


@pytest.mark.parametrize("missing", LAUNCHER)
def test_a_launchers_environment_must_be_complete(env, missing):
    if missing in ("MASTER_ADDR", "MASTER_PORT"):
        env.setenv("EUPMIM_WORLD_SIZE", "1")
    for name, value in LAUNCHER.items():
        if name != missing:
            env.setenv(name, value)
    with pytest.raises(UserError, match=missing):
        init_world(cpu=True)


@pytest.mark.parametrize("name", ["EUPMIM_WORLD_SIZE", "EUPMIM_TIMEOUT_SECONDS"])
def test_a_number_in_the_environment_must_be_one(env, name):
    env.setenv(name, "two")
    with pytest.raises(UserError, match=f"{name}='two'"):
        init_world(cpu=True)


def test_a_timeout_must_be_positive(env):
    env.setenv("EUPMIM_TIMEOUT_SECONDS", "0")
    with pytest.raises(UserError, match="EUPMIM_TIMEOUT_SECONDS=0"):
        init_world(cpu=True)


def report_world():
    from accelerate import Accelerator

    world = init_world(cpu=True)
    accelerator = Accelerator(cpu=True)
    assert (accelerator.process_index, accelerator.num_processes) == (world.rank, world.size)
    assert accelerator.device.type == world.device.type == "cpu"
    total = torch.tensor(world.rank + 1)
    dist.all_reduce(total)
    return world.rank, world.size, world.local_rank, world.local_size, total.item()


def test_ranks_know_themselves_and_accelerate_agrees():
    assert run_ranks(3, report_world) == [(0, 3, 0, 3, 6), (1, 3, 1, 3, 6), (2, 3, 2, 3, 6)]


def attempt(failing, kind, nested=False, collective=False):
    """A region in which `failing` ranks raise: what this rank raised, whether it is silent, whether fast."""
    world = init_world(cpu=True)
    agreement.GRACE_SECONDS = 1.0
    started = time.monotonic()
    try:
        with agreed(world):
            if world.rank in failing and not nested:
                raise kind("cannot read\n'x.npy'")
            with agreed(world):
                if world.rank in failing:
                    raise kind("cannot read\n'x.npy'")
                if collective:
                    dist.all_reduce(torch.zeros(1))
    except Exception as error:
        silent = getattr(error, "reported_elsewhere", False)
        with agreed(world):  # the ranks are still in step
            pass
        fast = time.monotonic() - started < 10
        return type(error).__name__, " ".join(str(error).split()), silent, fast
    return None


@pytest.mark.parametrize("nested", [False, True])
def test_all_ranks_raise_when_one_does_and_one_reports(nested):
    echo = ("RankFailed", "rank 1: OSError: cannot read 'x.npy'", True, True)
    own = ("OSError", "cannot read 'x.npy'", False, True)
    assert run_ranks(3, attempt, {1}, OSError, nested) == [echo, own, echo]


def test_a_users_mistake_stays_one_on_every_rank():
    echo = ("RankMistake", "rank 1: cannot read 'x.npy'", True, True)
    assert run_ranks(2, attempt, {1}, UserError) == [echo, ("UserError", "cannot read 'x.npy'", False, True)]


def test_of_several_failing_ranks_the_lowest_reports():
    results = run_ranks(3, attempt, {1, 2}, UserError, True)
    assert [silent for _, _, silent, _ in results] == [True, False, True]
    assert [name for name, _, _, _ in results] == ["RankMistake", "UserError", "UserError"]


def test_nothing_fails_when_no_rank_does():
    assert run_ranks(3, attempt, set(), OSError, True, True) == [None, None, None]


def leave_the_others_in_a_collective():
    world = init_world(cpu=True)
    agreement.GRACE_SECONDS = 1.0
    try:
        with agreed(world), agreed(world):
            if world.rank == 1:
                raise OSError("disk full")
            dist.all_reduce(torch.zeros(1))
    except Exception as error:
        if world.rank == 1:
            dist.destroy_process_group()  # as its exit would
        return str(error), getattr(error, "reported_elsewhere", False)


def test_a_rank_left_alone_in_a_collective_is_freed_and_told_why():
    echo = ("rank 1: OSError: disk full", True)
    started = time.monotonic()
    assert run_ranks(3, leave_the_others_in_a_collective) == [echo, ("disk full", False), echo]
    assert time.monotonic() - started < 20


def never_arrive():
    world = init_world(cpu=True)
    if world.rank == 2:
        time.sleep(4)
    try:
        with agreed(world):
            pass
    except RankFailed as error:
        return str(error), error.reported_elsewhere


def test_a_rank_that_never_arrives_is_named():
    found = run_ranks(3, never_arrive, timeout=30, collective_timeout=2)
    reason = "rank 2: gave no answer for 2 s: it is gone or stuck; alive, at a place outside of this program, for "
    assert all(told.startswith(reason) for told, _ in found)
    assert [silent for _, silent in found] == [False, True, True]


def time_out(directory):
    """What rank 0 is told, and what it was at by its traces, where rank 1 does not come to a sum."""
    world = init_world(cpu=True)
    agreement.GRACE_SECONDS = 0.5
    tempfile.tempdir = str(directory)
    if world.rank == 1:
        time.sleep(3)
        return None
    with pytest.raises(RankFailed) as failed, agreed(world):
        dist.all_reduce(torch.zeros(7))
    told, _, place = str(failed.value).partition("; see ")
    stacks, collectives = (Path(place) / f"rank-0.{what}" for what in ("stacks.txt", "collectives.json"))
    last = json.loads(collectives.read_text())["entries"][-1]
    return told, "_write_traces" in stacks.read_text(), (last["profiling_name"], last["input_sizes"])


def test_a_collective_that_times_out_names_the_late_rank_and_what_was_under_way(tmp_path):
    (told, has_stacks, last), _ = run_ranks(2, time_out, tmp_path, collective_timeout=1)
    late = "rank 1: took no part in a collective for 1 s, and gave no answer for 0.5 s: it is gone or stuck"
    assert told.startswith(f"{late}; alive, at a place outside of ")
    assert has_stacks
    assert last == ("gloo:all_reduce", [[7]])


SCRIPT = """
import os, time
import torch.distributed as dist
from eupmim_dist.parallel.world import init_world
world = init_world(cpu=True)
dist.barrier()
if world.rank == 1:
    time.sleep(2)
    dist.distributed_c10d._get_default_store().add("late", 1)  # rank 0's process holds it
"""


def test_no_rank_of_a_script_leaves_while_another_needs_it():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    common = {**os.environ, **LAUNCHER, "WORLD_SIZE": "2", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT]
    ranks = [
        subprocess.Popen(
            command,
            env={**common, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for rank in "01"
    ]
    told = [rank.communicate(timeout=60)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told


def test_a_rank_tells_its_own_reason_where_the_store_is_lost(monkeypatch):
    def gone(*_):
        raise dist.DistError("closed")

    monkeypatch.setattr(agreement, "_meet", gone)
    monkeypatch.setattr(agreement, "parted", threading.Event())
    world = World(1, 2, 1, 2, torch.device("cpu"))
    with pytest.raises(UserError, match="no such file"), agreed(world):
        raise UserError("no such file")
    with pytest.raises(RankFailed, match="rank 1: lost rank 0"), agreed(world):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RankFailed, match="rank 1: lost rank 0"), agreed(world):
        pass


def open_slowly(directory, seconds, reads):
    """Opens a store whose hashing takes so long on rank 0, which is stuck in it unless it `reads`."""
    world = init_world(cpu=True)

    def hash_slowly(file, on_bytes):
        for _ in range(10):
            time.sleep(seconds / 10)
            if reads:
                on_bytes(1)
        return hashing.sha256(file)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stores, "sha256", hash_slowly)
        patched.setattr(agreement, "GRACE_SECONDS", 0.5)
        try:
            return open_store(directory, world).num_users
        except RankFailed as error:
            return str(error)


def test_a_store_may_take_longer_to_hash_than_a_collective(tmp_path):
    small_store(tmp_path, num_users=20)
    num_files, gone = len(read_manifest(tmp_path).files), "rank 0: gave no answer for 1 s: it is gone or stuck"
    assert run_ranks(2, open_slowly, tmp_path, 2 / num_files, True, collective_timeout=1) == [20, 20]
    assert run_ranks(2, open_slowly, tmp_path, 2 / num_files, False, collective_timeout=1)[1].startswith(gone)
