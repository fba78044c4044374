"""Rows that nearly every node asks for, held by all ranks: which these are, and a training with them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.checkpoint.layout import resolve
from eupmim_dist.checkpoint.load import load_training
from eupmim_dist.checkpoint.save import save_checkpoint
from eupmim_dist.config.load import parse_config
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.parallel.head import NODES, head_of
from eupmim_dist.parallel.world import World, init_world
from eupmim_dist.train.loop import train
from eupmim_dist.train.state import Outcome, Run
from tests.distributed.spawn import Ranks
from tests.stores import small_store

RANKS, LOCAL, STEPS = 4, 2, 16
MIDDLE, END = 5, 11
HEAD = {"replicate_head": True}


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(RANKS) as ranks:
        yield ranks


def world_of_nodes() -> World:
    world = init_world(cpu=True)
    return replace(world, local_rank=world.rank % LOCAL, local_size=LOCAL)


def asked(rank: int, step: int) -> list[dict[str, tuple[str, torch.Tensor]]]:
    """Two micro-batches; the smaller an id, the more often."""
    generator = np.random.default_rng([rank, step])
    ids = [torch.from_numpy(generator.geometric(0.08, (6, 4)) - 2) for _ in range(3)]
    return [{"history": ("item", ids[0]), "user": ("user", ids[1])}, {"again": ("item", ids[2])}]


def choose() -> dict[str, np.ndarray]:
    world = world_of_nodes()
    return head_of((asked(world.rank, step) for step in range(STEPS)), world)


def test_the_head_is_what_nine_in_ten_nodes_ask_for(ranks: Ranks) -> None:
    """Counted over the nodes there are, where ranks draw alike: near the share of ranks that is taken for it."""
    found = ranks.run(choose)
    for other in found[1:]:
        assert {name: ids.tolist() for name, ids in other.items()} == {n: ids.tolist() for n, ids in found[0].items()}
    for table, ids in found[0].items():
        times: dict[int, int] = {}
        for step in range(STEPS):
            for rank in range(RANKS):
                uses = [ids for part in asked(rank, step) for name, ids in part.values() if name == table]
                for row in set(torch.cat([u.flatten() for u in uses]).tolist()) - {NO_ROW}:
                    times[row] = times.get(row, 0) + 1
        share = 1 - (1 - NODES) ** (1 / LOCAL)
        expected = sorted(row for row, number in times.items() if number > share * RANKS * STEPS)
        assert ids.tolist() == expected
        assert 0 < len(expected) < len(times)


class Losses:
    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def after_step(self, run: Run, outcome: Outcome) -> None:
        total = torch.stack(list(outcome.shares.values())).sum()
        dist.all_reduce(total)
        self.found.append(total)

    def at_end(self, run: Run) -> None:
        pass


def run_to(run: Run, step: int) -> list[torch.Tensor]:
    settings = run.config.train.model_copy(update={"max_steps": step})
    run.config = run.config.model_copy(update={"train": settings})
    losses = Losses()
    train(run, [losses])
    return losses.found


def train_with(store: Path, place: Path, tables: dict[str, Any]) -> dict[str, Any]:
    """Losses without a break, and of a run that is saved and gone on with; ids of the head and rows at the end."""
    world = world_of_nodes()
    values = {
        "data": {"dir": str(store)},
        "task": {"history_length": 6},
        "model": {"dim": 8, "num_heads": 2, "num_encoder_layers": 1, "dropout": 0.0, "attention_dropout": 0.0},
        "tables": {"replicate_below": 0, "optimizer": "lazy_adam", **tables},
        "objective": {"num_negatives": 5},
        "train": {"global_batch_size": 24, "learning_rate": 0.01, "accumulation": 2, "clip_norm": 1.0},
        "evaluation": {"top_n": [5]},
    }
    config = parse_config(values, source="test")

    def new() -> Run:
        return assemble_run(config, world, open_store(config.data.dir, world))

    whole = new()
    losses = run_to(whole, END)
    broken = new()
    before = run_to(broken, MIDDLE)
    save_checkpoint(broken, place)
    resumed = new()
    load_training(resumed, resolve(place, "last"))
    after = run_to(resumed, END)
    ids = torch.arange(20)
    rows = whole.tables.lookup({"some": ("item", ids)}).rows[0]["some"].detach()
    of_copies = [whole.tables.groups[g.head.number].weight for g in whole.tables.groups if g.head is not None]
    return {
        "losses": losses,
        "resumed": before + after,
        "head": {table: ids.tolist() for table, ids in whole.tables.head.items()},
        "rows": rows,
        "sent": {kind: cost.bytes for kind, cost in whole.tables.traffic.items()},
        "copies": sum(len(copies) for copies in of_copies),
    }


def test_a_training_with_a_head_is_the_same(ranks: Ranks, tmp_path: Path) -> None:
    store = small_store(tmp_path / "store", num_users=33).path
    plain = ranks.run(train_with, store, tmp_path / "plain", {})[0]
    assert plain["head"] == {}
    assert not plain["sent"].get("replicated")
    for exchange in ("flat", "two_level"):
        found, *others = ranks.run(train_with, store, tmp_path / exchange, {"exchange": exchange, **HEAD})
        assert found["head"]["item"]
        assert found["copies"] == sum(map(len, found["head"].values()))
        assert torch.equal(torch.stack(found["losses"]), torch.stack(found["resumed"]))
        assert all(torch.equal(torch.stack(found["losses"]), torch.stack(other["losses"])) for other in others)
        torch.testing.assert_close(found["losses"], plain["losses"], rtol=1e-5, atol=0)
        torch.testing.assert_close(found["rows"], plain["rows"], rtol=1e-4, atol=1e-6)
        assert found["sent"]["rows"] < plain["sent"]["rows"]
        assert found["sent"]["replicated"]
