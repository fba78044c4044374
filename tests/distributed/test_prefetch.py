"""Preparing ahead: what goes wrong in the thread of one rank is told by all, and nothing hangs."""

import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.exchange import (
    USERS,
    Connections,
    Exchange,
    Traffic,
    background_group,
    open_connections,
)
from eupmim_dist.parallel.plan import Plan, _told_by_all
from eupmim_dist.parallel.prefetch import STEPS_AHEAD, Prefetcher
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import run_ranks
from tests.runs import WORLD

BAD_STEP = 3
MESHES = 3
"""Of connections between all ranks, each of which takes a file per rank (docs/launching.md)."""


def take_steps(stop_at: int, bad_rank: int) -> tuple[int, str]:
    """How many steps this rank took until step `stop_at`, and what ended them; `bad_rank` asks for a bad row."""
    world = init_world(cpu=True)
    tables = ShardedTables([TableSpec("item", 10, 4)], 0, world, TablesConfig(replicate_below=0))

    def plan(step: int, connections: Connections | None) -> Plan:
        bad = step == BAD_STEP and world.rank == bad_rank
        return tables.plan([{"item": ("item", torch.tensor([10 if bad else step]))}], connections)

    taken = 0
    try:
        with Prefetcher(plan, world, last_step=8) as ahead:
            for step in range(stop_at):
                tables.fetch(ahead.take(step))
                taken += 1
                tables.lookup({"item": ("item", torch.tensor([1]))})  # as an evaluation does, while the thread plans
    except IndexError as error:
        return taken, str(error)
    return taken, "done"


@pytest.mark.parametrize("size", [1, 3])
def test_bad_ids_in_one_thread_stop_every_rank(size: int) -> None:
    for taken, told in run_ranks(size, take_steps, 8, size - 1):
        assert taken == BAD_STEP
        assert "table item: id 10 is outside its 10 rows" in told
        assert size == 1 or told.startswith(f"rank {size - 1}: ")


def test_a_plan_that_failed_and_was_not_taken_is_told_at_the_end() -> None:
    for taken, told in run_ranks(2, take_steps, BAD_STEP, 1):
        assert taken == BAD_STEP
        assert "rank 1: table item: id 10" in told


def test_stopping_early_leaves_no_rank_waiting() -> None:
    assert run_ranks(3, take_steps, 5, -1) == 3 * [(5, "done")]


def test_some_steps_are_prepared_ahead_and_no_more() -> None:
    begun: list[int] = []

    def prepare(step: int, connections: Connections | None) -> int:
        begun.append(step)
        return step

    with Prefetcher(prepare, WORLD, last_step=11) as ahead:
        for step in range(9):
            assert ahead.take(step) == step
            deadline = time.monotonic() + 30
            while len(begun) < min(step + STEPS_AHEAD, 11) + 1 and time.monotonic() < deadline:
                time.sleep(0.001)
            assert begun == list(range(min(step + STEPS_AHEAD, 11) + 1))
    assert begun == list(range(9 + STEPS_AHEAD))


def test_a_step_that_takes_long_to_prepare_holds_up_none_before_it() -> None:
    released = threading.Event()

    def prepare(step: int, connections: Connections | None) -> int:
        assert step != 2 + STEPS_AHEAD or released.wait(30)
        return step

    with Prefetcher(prepare, WORLD, last_step=9) as ahead:
        for step in range(2 + STEPS_AHEAD):
            assert ahead.take(step) == step
        assert not released.is_set()
        released.set()
        assert ahead.take(2 + STEPS_AHEAD) == 2 + STEPS_AHEAD


def test_after_a_step_that_cannot_be_prepared_none_is() -> None:
    """The other ranks may be waiting in the exchange of that step."""
    begun: list[int] = []

    def prepare(step: int, connections: Connections | None) -> int:
        begun.append(step)
        if step == 1:
            raise ValueError("no such user")
        return step

    with pytest.raises(ValueError, match="no such user"), Prefetcher(prepare, WORLD, last_step=9) as ahead:  # noqa: PT012
        ahead.take(0)
        time.sleep(0.1)  # the thread would have gone on
        ahead.take(1)
    assert begun == [0, 1]


def fail_and_begin_again(kind: str) -> list[str]:
    """What ended each of several attempts in the same processes, whose threads are at different places then."""
    world = init_world(cpu=True)
    tables = ShardedTables([TableSpec("item", 10, 4)], 0, world, TablesConfig(replicate_below=0))
    drawn, told = random.Random(world.rank), []

    def plan(step: int, connections: Connections | None) -> Plan:
        time.sleep(drawn.random() / 50)
        bad = kind == "bad row" and step == BAD_STEP and world.rank == 0
        return tables.plan([{"item": ("item", torch.tensor([10 if bad else step]))}], connections)

    for _ in range(12):
        try:
            with Prefetcher(plan, world, last_step=8) as ahead:
                for step in range(8):
                    found = tables.fetch(ahead.take(step)).rows[0]["item"]
                    assert torch.equal(found, tables.lookup({"item": ("item", torch.tensor([step]))}).rows[0]["item"])
                    if kind == "diverged" and step == BAD_STEP:
                        raise ValueError("diverged")
        except (ValueError, IndexError) as error:
            told.append(str(error))
    return told


@pytest.mark.parametrize(("kind", "told"), [("diverged", "diverged"), ("bad row", "rank 0: table item: id 10")])
def test_ranks_that_fail_alike_may_begin_again(kind: str, told: str) -> None:
    for found in run_ranks(3, fail_and_begin_again, kind):
        assert len(found) == 12
        assert all(line.startswith(told) for line in found)


def stops(step_of_request: int) -> list[bool]:
    """Which steps' plans ask to stop, as the last rank does at one step."""
    world = init_world(cpu=True)
    tables = ShardedTables([TableSpec("item", 10, 4)], 0, world, TablesConfig(replicate_below=0))

    def plan(step: int, connections: Connections | None) -> Plan:
        mine = step == step_of_request and world.rank == world.size - 1
        return tables.plan([{"item": ("item", torch.tensor([step]))}], connections, stop=mine)

    with Prefetcher(plan, world, last_step=4) as ahead:
        return [ahead.take(step).stop for step in range(5)]


@pytest.mark.parametrize("size", [1, 3])
def test_a_request_to_stop_of_one_rank_reaches_all_at_the_same_step(size: int) -> None:
    assert run_ranks(size, stops, 3) == size * [[False, False, False, True, False]]


def loads() -> dict[str, list[tuple[int, int]]]:
    world = init_world(cpu=True)
    tables = ShardedTables(
        [TableSpec("item", 3000, 4), TableSpec("small", 9, 4)], 0, world, TablesConfig(replicate_below=100)
    )
    tables.fetch(tables.plan([{"item": ("item", torch.arange(3000)), "small": ("small", torch.arange(9))}]))
    tables.lookup({"item": ("item", torch.arange(3000))})  # not a step of training: not counted
    return {name: [(rank.rows, rank.requests) for rank in ranks] for name, ranks in tables.load().items()}


def test_the_load_report_counts_rows_and_requests_of_sharded_tables() -> None:
    for report in run_ranks(2, loads):
        assert report == {"item": [(1500, 3000), (1500, 3000)]}  # both ranks want all rows of both


def exchange_at_once(rounds: int) -> None:
    """What each of the users of the connections receives, while a third one gathers over them."""
    world = init_world(cpu=True)
    drawn = random.Random(world.rank)
    group, connections = background_group(), {user: open_connections(user) for user in USERS}
    assert dist.get_pg_count() == MESHES

    def sent(sender: int, receiver: int, user: str, round_: int, part: int) -> float:
        return float(10_000 * USERS.index(user) + 1000 * part + 100 * round_ + 10 * sender + receiver)

    def use(user: str) -> None:
        exchange = Exchange(world, Traffic(), connections[user])
        for round_ in range(rounds):
            time.sleep(drawn.random() / 200)
            received = [[torch.zeros(50) for _ in range(world.size)] for _ in range(2)]
            parts = [
                [torch.full((50,), sent(world.rank, peer, user, round_, part)) for peer in range(world.size)]
                for part in range(2)
            ]
            with exchange.receiving("rows", received) as send:
                send(parts)
            for part, peer in itertools.product(range(2), range(world.size)):
                expected = sent(peer, world.rank, user, round_, part) if peer != world.rank else 0.0
                assert received[part][peer].unique().tolist() == [expected], (user, round_, part, peer)
            told = [f"{user} {round_}".encode() * rank for rank in range(world.size)]  # nothing of rank 0
            assert _told_by_all(told[world.rank], exchange) == told

    with ThreadPoolExecutor(len(USERS)) as threads:
        under_way = [threads.submit(use, user) for user in USERS]
        for round_ in range(rounds):
            assert everywhere(round_ + world.rank, world, group) == [round_ + rank for rank in range(world.size)]
        for each in under_way:
            each.result()


def test_what_one_thread_sends_no_other_receives() -> None:
    run_ranks(3, exchange_at_once, 9)
