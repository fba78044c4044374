"""Sharded tables against the local oracle: forward, backward and every optimizer."""

import pytest
import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import TABLE_OPTIMIZERS
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.tables import LocalTables
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import run_ranks

SPECS = [TableSpec("item", 23, 8), TableSpec("user", 3, 5), TableSpec("single", 1, 2)]  # more ranks than rows
CPU = torch.device("cpu")


def ids_of(rank: int, step: int) -> dict[str, Tensor]:
    """Ragged, repeated, empty and all-padding requests, a different mix on each rank."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    kind = (rank + step) % 4
    if kind == 3:
        item = torch.full((2, 3), NO_ROW)
    else:
        item = torch.randint(NO_ROW, 23, (0 if kind == 2 else 4, 3), generator=generator)
    return {
        "item": item,
        "user": torch.randint(NO_ROW, 3, (kind,), generator=generator),
        "single": torch.zeros(kind, dtype=torch.int64),
    }


def loss_of(rows: dict[str, Tensor], rank: int) -> Tensor:
    """A loss whose gradient differs for every use of a row."""
    total = torch.zeros(())
    for number, (_, values) in enumerate(sorted(rows.items())):
        weight = torch.arange(values.numel(), dtype=torch.float32).view(values.shape).sin() + rank + number
        total = total + (weight * values.square() + weight * values).sum()
    return total


def sharded_training(optimizer: str, num_steps: int) -> dict[str, tuple[int, Tensor, list[Tensor]]]:
    world = init_world(cpu=True)
    tables = ShardedTables(SPECS, 7, world)
    table_optimizer = TABLE_OPTIMIZERS[optimizer](tables.shards, 0.05, 0.01)
    looked_up: dict[str, list[Tensor]] = {spec.name: [] for spec in SPECS}
    for step in range(num_steps):
        lookup = tables.lookup(ids_of(world.rank, step))
        for name, rows in lookup.rows.items():
            looked_up[name].append(rows.detach().clone())
        loss_of(lookup.rows, world.rank).backward()
        table_optimizer.step(lookup.gradients(0.5))
    return {name: (shard.start, shard.weight, looked_up[name]) for name, shard in tables.shards.items()}


@pytest.mark.parametrize("optimizer", list(TABLE_OPTIMIZERS))
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_sharded_training_equals_local(world_size: int, optimizer: str) -> None:
    num_steps = 5
    ranks = run_ranks(world_size, sharded_training, optimizer, num_steps)

    tables = LocalTables(SPECS, 7, CPU)
    table_optimizer = TABLE_OPTIMIZERS[optimizer](tables.shards, 0.05, 0.01)
    for step in range(num_steps):
        requests = [ids_of(rank, step) for rank in range(world_size)]
        merged = {name: torch.cat([ids[name].flatten() for ids in requests]) for name in requests[0]}
        lookup = tables.lookup(merged)
        loss = torch.zeros(())
        for rank, ids in enumerate(requests):
            own = {}
            for name, rows in lookup.rows.items():
                before = sum(other[name].numel() for other in requests[:rank])
                own[name] = rows[before : before + ids[name].numel()].view(*ids[name].shape, rows.shape[-1])
                torch.testing.assert_close(ranks[rank][name][2][step], own[name], rtol=1e-5, atol=1e-6)
            loss = loss + loss_of(own, rank)
        loss.backward()
        table_optimizer.step(lookup.gradients(0.5))
    for name, shard in tables.shards.items():
        joined = torch.cat([rank[name][1] for rank in ranks])
        assert [rank[name][0] for rank in ranks] == [
            min(r * -(-len(joined) // world_size), len(joined)) for r in range(world_size)
        ]
        torch.testing.assert_close(joined, shard.weight, rtol=1e-5, atol=1e-6)


def bad_id(wrong: int) -> str:
    world = init_world(cpu=True)
    tables = ShardedTables(SPECS, 0, world)
    ids = {spec.name: torch.zeros(1, dtype=torch.int64) for spec in SPECS}
    if world.rank == 1:
        ids["user"] = torch.tensor([0, wrong])
    try:
        tables.lookup(ids)
    except IndexError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("wrong", [3, -2])
def test_an_id_outside_its_table_raises_on_every_rank(wrong: int) -> None:
    errors = run_ranks(3, bad_id, wrong)
    assert errors[1] == f"table user: id {wrong} is outside its 3 rows"
    assert errors[0] == errors[2] == "rank 1 asked for an id outside its table; its own error names it"
