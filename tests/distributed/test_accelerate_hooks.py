"""A training loop of a user's own: `accelerator.save_state` and `load_state` keep all shards."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from eupmim_dist.checkpoint.accelerate_hooks import checkpoint_tables
from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import TABLE_OPTIMIZERS, TableOptimizer, make_table_optimizer
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import run_ranks


class Loop:
    """The loop: a linear layer over the rows of two tables, one of which is sharded."""

    def __init__(self, optimizer: str = "rowwise_adagrad", rows: int = 101) -> None:
        torch.set_num_threads(1)
        self.world = init_world(cpu=True)
        self.accelerator = Accelerator(cpu=True)
        torch.manual_seed(0)
        layer = nn.Linear(8, 1)
        self.layer, self.adam = self.accelerator.prepare(layer, torch.optim.Adam(layer.parameters()))
        config = TablesConfig(optimizer=optimizer, replicate_below=50, learning_rate=0.1)
        specs = [TableSpec("item", rows, 8), TableSpec("kind", 7, 8)]
        self.tables = ShardedTables(specs, 0, self.world, config)
        self.optimizer: TableOptimizer = make_table_optimizer(config, self.tables, 0.1, 0.0)
        checkpoint_tables(self.accelerator, self.tables, self.optimizer)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            # The batch of the world is the same at any number of ranks.
            ids = (torch.arange(24) * 7 + step) % 101
            mine = ids[self.world.rank :: self.world.size]
            lookup = self.tables.lookup({"item": ("item", mine), "kind": ("kind", mine % 7)})
            rows = lookup.rows[0]
            loss = self.layer(rows["item"] * rows["kind"]).square().sum() / len(ids)
            self.accelerator.backward(loss * self.world.size)
            self.adam.step()
            self.adam.zero_grad()
            self.optimizer.step(lookup.gradients(1.0 / self.world.size))

    def state(self) -> dict[str, Any]:
        """Rows and their state by id, and the layer."""
        found: dict[str, Any] = {"layer": self.accelerator.unwrap_model(self.layer).weight.detach().clone()}
        for name, shard in self.tables.shards.items():
            for key, value in {"rows": shard.weight, **self.optimizer.row_state[name]}.items():
                found[f"{name}.{key}"] = dict(zip(shard.ids().tolist(), value.clone(), strict=True))
        return {**found, "num_steps": float(self.optimizer.num_steps)}


def save_and_go_on(place: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    found = {}
    for optimizer in TABLE_OPTIMIZERS:
        loop = Loop(optimizer)
        for until in (2, 3):  # a second save takes the place of the first
            loop.train(0 if until == 2 else 2, until)
            loop.accelerator.save_state(str(place / optimizer))
        saved = loop.state()
        loop.train(3, 6)
        found[optimizer] = (saved, loop.state())
    return found


def load_and_go_on(place: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    found = {}
    for optimizer in TABLE_OPTIMIZERS:
        loop = Loop(optimizer)
        loop.train(50, 51)  # nothing of it may be left
        loop.accelerator.load_state(str(place / optimizer))
        loaded = loop.state()
        loop.train(3, 6)
        found[optimizer] = (loaded, loop.state())
    return found


def whole(ranks: list[Any], optimizer: str, when: int) -> dict[str, Any]:
    """The state over all ranks."""
    joined: dict[str, Any] = {}
    for rank in ranks:
        for name, value in rank[optimizer][when].items():
            joined[name] = {**joined.get(name, {}), **value} if isinstance(value, dict) else value
    return joined


def assert_same(one: dict[str, Any], other: dict[str, Any], exactly: bool) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if not isinstance(value, dict):
            value, found = torch.as_tensor(value), torch.as_tensor(other[name])
        else:
            assert value.keys() == other[name].keys(), name
            value, found = (torch.stack([rows[key] for key in sorted(rows)]) for rows in (value, other[name]))
        tolerance: dict[str, float] = {"rtol": 0.0, "atol": 0.0} if exactly else {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(found, value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_all_shards_are_saved_and_loaded_at_any_number_of_ranks(tmp_path: Path) -> None:
    saved = run_ranks(2, save_and_go_on, tmp_path)
    assert {len(rank["sgd"][0]["item.rows"]) for rank in saved} == {51, 50}, "the table was not sharded"
    for size in (1, 2, 3):
        loaded = [load_and_go_on(tmp_path)] if size == 1 else run_ranks(size, load_and_go_on, tmp_path)
        for optimizer in TABLE_OPTIMIZERS:
            assert_same(whole(saved, optimizer, 0), whole(loaded, optimizer, 0), exactly=True)
            assert_same(whole(saved, optimizer, 1), whole(loaded, optimizer, 1), exactly=size == 2)


def refusals(place: Path) -> list[str]:
    said = []
    for loop in (Loop("sgd"), Loop("lazy_adam", rows=99), Loop("lazy_adam")):
        try:
            loop.accelerator.load_state(str(place))
        except UserError as error:
            said.append(str(error))
    return said


def save(place: Path) -> None:
    Loop("lazy_adam").accelerator.save_state(str(place))


def load(place: Path) -> None:
    Loop("lazy_adam").accelerator.load_state(str(place))


def test_a_replacement_that_was_cut_in_two_is_undone(tmp_path: Path) -> None:
    run_ranks(2, save, tmp_path)
    (tmp_path / "tables").rename(tmp_path / ".tables.replaced")
    run_ranks(2, load, tmp_path)
    assert (tmp_path / "tables" / "manifest.json").is_file()


def test_other_tables_and_damage_are_refused_on_every_rank(tmp_path: Path) -> None:
    run_ranks(2, save, tmp_path)
    shard = tmp_path / "tables" / "shard-00002-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    for said in run_ranks(2, refusals, tmp_path):
        assert len(said) == 3, said
        assert "its optimizer is lazy_adam, here it is sgd" in said[0]
        assert "its tables is {'item': [101, 8], 'kind': [7, 8]}, here it is {'item': [99, 8]" in said[1]
        assert "shard-00002-of-00002.safetensors: damaged" in said[2]
    (tmp_path / "tables" / "manifest.json").unlink()
    for said in run_ranks(2, refusals, tmp_path):
        assert all("incomplete, it has no manifest.json" in line for line in said)
