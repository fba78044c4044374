"""What a rank holds of tables that are too large for one: its share of the rows and of the optimizer's state."""

import sys
from pathlib import Path

import pytest
import torch

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import make_table_optimizer
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import World, init_world
from tests.distributed.spawn import run_ranks

WORLD_SIZE = 3
NUM_STEPS = 3
NUM_IDS = 20_000
DIM = 32
MARGIN = 1.15
ALLOCATOR = 8 << 20
"""Bytes that malloc may keep of what a step freed."""


def status(field: str) -> int:
    """Bytes of VmRSS, what this process holds, or of VmHWM, the most that it held."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def train(world: World, tables: list[TableSpec], config: TablesConfig) -> None:
    sharded = ShardedTables(tables, 0, world, config)
    optimizer = make_table_optimizer(config, sharded, 0.1, 1e-5)
    generator = torch.Generator().manual_seed(world.rank)
    for _ in range(NUM_STEPS):
        lookup = sharded.lookup(
            {
                spec.name: (spec.name, torch.randint(spec.rows, (NUM_IDS // len(tables),), generator=generator))
                for spec in tables
            }
        )
        for rows in lookup.rows[0].values():
            rows.square().sum().backward()
        optimizer.step(lookup.gradients(1.0))


def peak(tables: list[TableSpec], config: TablesConfig) -> int:
    """Bytes by which this rank's peak is above what it held before."""
    world = init_world(cpu=True)
    train(world, [TableSpec("warm", 1000, DIM)], config)  # what torch loads and keeps at first use
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = status("VmRSS")
    train(world, tables, config)
    return status("VmHWM") - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
@pytest.mark.parametrize(
    ("optimizer", "total_rows", "floats_per_row"),
    [
        ("rowwise_adagrad", 6_400_000, DIM + 1),  # 845 MB
        ("exact", 1_600_000, 4 * DIM),  # 819 MB: rows, their gradients and two moments
    ],
)
def test_a_rank_holds_its_share_and_a_batch(optimizer: str, total_rows: int, floats_per_row: int) -> None:
    tables = [TableSpec("large", total_rows * 3 // 4, DIM), TableSpec("small", total_rows // 4, DIM)]
    config = TablesConfig.model_validate({"optimizer": optimizer, "replicate_below": 0})
    share = 4 * floats_per_row * total_rows // WORLD_SIZE
    # docs/tables.md, with every id distinct (u = n) and as many rows wanted of a rank as it wants (m = n).
    batch = 4 * DIM * 8 * NUM_IDS + 100 * NUM_IDS + ALLOCATOR
    for rank, held in enumerate(run_ranks(WORLD_SIZE, peak, tables, config)):
        told = f"rank {rank} held {held / 2**20:.0f} MiB, its share is {share / 2**20:.0f} MiB"
        print(told)
        assert held <= MARGIN * share + batch, told
        assert held >= share, told  # or this measures nothing
