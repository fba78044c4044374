"""Preparing ahead: what goes wrong in the thread of one rank is told by all, and nothing hangs."""

import pytest
import torch

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.parallel.exchange import Connections
from eupmim_dist.parallel.plan import Plan
from eupmim_dist.parallel.prefetch import Prefetcher
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import run_ranks

BAD_STEP = 3


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
