"""Features of rows, over 1 to 4 ranks, against plain autograd over whole tables in one process, in float64.

Gradients and rows within 1e-5 of the largest: what is added up in another order and in float32. The oracle steps with
the ranks' gradients no more than they do with its own: each has a plain SGD of its own.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.models.features import Feature
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import make_table_optimizer
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.verdict import judge
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import Ranks, run_ranks
from tests.oracles.tables_plain import initial_weight

SEED, DIM, ITEMS, USERS, STEPS, RATE = 5, 6, 37, 11, 3, 0.1
BOUNDARY = 20
"""Of replicate_below: the catalogue is sharded, the table of users is not; or the other way round with 1,000."""


def features() -> list[Feature]:
    """Genres, up to three an item, none of many; a brand that all but the padding have; numbers; vectors of users."""
    random = np.random.default_rng(0)
    genres = random.integers(0, 5, (ITEMS, 3)).astype(np.int32)
    genres[[0, 7, 8]] = 0
    for item, values in enumerate(genres):  # each value once
        genres[item] = np.pad(np.unique(values[values > 0]), (0, 3))[:3]
    brands = random.integers(1, 9, (ITEMS, 1)).astype(np.int32)
    brands[0] = 0
    numbers = random.normal(size=(ITEMS, 2)).astype(np.float32)
    vectors = random.normal(size=(USERS, 4)).astype(np.float32)
    return [
        Feature("item", TableSpec("item:genres", 6, DIM, padding_row=0), values=genres),
        Feature("item", TableSpec("item:brand", 9, DIM, padding_row=0), values=brands),
        Feature("item", TableSpec("item:numbers", 2, DIM), numbers=numbers),
        Feature("user", TableSpec("user:vectors", 4, DIM), numbers=vectors),
    ]


@dataclass(frozen=True)
class Scenario:
    size: int
    replicate_below: int
    catalogue: bool
    optimizer: str = "sgd"

    def ids(self, step: int, rank: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * step + rank)
        history = torch.randint(NO_ROW, ITEMS, (3, 4), generator=generator)
        history[0, 0] = 0  # the padding row, too, may be asked for
        return history, torch.randint(0, USERS, (3,), generator=generator)


def loss_of(values: Tensor, salt: int) -> Tensor:
    """With a gradient that differs from element to element."""
    counter = torch.arange(values.numel()).view(values.shape) * 7919 + 911 * salt
    return (((counter % 1009 - 504) / 313).to(values.dtype) * F.softplus(values)).sum()


def train(scenario: Scenario, ranks: list[int] | None = None) -> dict[str, Any]:
    """As a rank of several or, of `ranks`, as one that asks for what they would."""
    world = init_world(cpu=True)
    config = TablesConfig(replicate_below=scenario.replicate_below, optimizer=scenario.optimizer)  # type: ignore[arg-type]
    specs = [TableSpec("item", ITEMS, DIM, padding_row=0), TableSpec("user", USERS, DIM)]
    tables = ShardedTables(specs, SEED, world, config, "item" if scenario.catalogue else None, features())
    optimizer = make_table_optimizer(config, tables, RATE, 0.0)
    norms, seen = [], []
    for step in range(STEPS):
        asked = [scenario.ids(step, rank) for rank in ranks or [world.rank]]
        lookup = tables.fetch(
            tables.plan([{"history": ("item", items), "user": ("user", user)} for items, user in asked])
        )
        seen.append({name: values.detach().clone() for name, values in lookup.rows[0].items()})
        loss = torch.zeros(())
        for rows in lookup.rows:
            loss = loss + loss_of(rows["history"], step) + loss_of(rows["user"], step + 1)
        catalogue = tables.catalogue() if scenario.catalogue else None
        if catalogue is not None:
            ids, part = torch.arange(ITEMS), catalogue.part
            by_item = loss_weights()[part.shard.ids()[part.first : part.stop]]
            loss = loss + (by_item * F.softplus(catalogue.rows)).sum()
            found, here = catalogue.rows_of(ids)
            seen[-1]["whole"] = torch.where(here[:, None], found, 0.0).detach()
        loss.backward()
        gradients = lookup.gradients(1.0, catalogue)
        verdict = judge([], gradients, tables, None, world)
        norms.append(verdict.norm.item())
        optimizer.step(gradients, verdict)
    held = {name: (shard.ids(), shard.weight.clone(), shard.replicated) for name, shard in tables.shards.items()}
    return {"norms": norms, "rows": seen, "held": held}


def train_for_two(optimizer: str) -> dict[str, Any]:
    """On one rank, with what two ranks ask for as two micro-batches."""
    return train(Scenario(2, 0, catalogue=True, optimizer=optimizer), ranks=[0, 1])


def loss_weights() -> Tensor:
    weights = (torch.arange(ITEMS * DIM).view(ITEMS, DIM) * 31 % 17 - 8) / 5
    weights[0] = 0.0  # nobody scores the padding
    return weights


class Plain:
    """Whole tables, and rows put together as the formula has it, one by one."""

    def __init__(self) -> None:
        sizes = {"item": ITEMS, "user": USERS} | {f.spec.name: f.spec.rows for f in features()}
        self.tables = {
            name: initial_weight(SEED, name, rows, DIM).double().requires_grad_() for name, rows in sizes.items()
        }

    def row(self, table: str, row: int) -> Tensor:
        if row == NO_ROW:
            return torch.zeros(DIM, dtype=torch.float64)
        total = self.tables[table][row]
        for feature in features():
            if feature.table == table and feature.values is not None:
                values = [value for value in feature.values[row].tolist() if value]
                if values:
                    total = total + sum(self.tables[feature.spec.name][v] for v in values) / len(values)
            elif feature.table == table and feature.numbers is not None:
                for number, own in zip(feature.numbers[row].tolist(), self.tables[feature.spec.name], strict=True):
                    total = total + number * own
        return total

    def rows(self, table: str, ids: Tensor) -> Tensor:
        return torch.stack([self.row(table, row) for row in ids.flatten().tolist()]).view(*ids.shape, DIM)

    def step(self, scenario: Scenario, step: int) -> tuple[list[dict[str, Tensor]], float]:
        """What each rank is to see, and the norm of the gradient; the tables move."""
        loss, seen = torch.zeros((), dtype=torch.float64), []
        for rank in range(scenario.size):
            history, user = scenario.ids(step, rank)
            seen.append({"history": self.rows("item", history), "user": self.rows("user", user)})
            loss = loss + loss_of(seen[-1]["history"], step) + loss_of(seen[-1]["user"], step + 1)
        if scenario.catalogue:
            loss = loss + (loss_weights() * F.softplus(self.rows("item", torch.arange(ITEMS)))).sum()
        loss.backward()
        gradients = {name: table.grad for name, table in self.tables.items() if table.grad is not None}
        norm = float(torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt())
        with torch.no_grad():
            for name, gradient in gradients.items():
                self.tables[name] -= RATE * gradient
                self.tables[name].grad = None
        return seen, norm


def near(found: Tensor, expected: Tensor, what: str) -> None:
    error, largest = (found.double() - expected).abs().max(), expected.abs().max()
    assert error <= 1e-5 * largest, f"{what}: off by {error:.2e} of {largest:.2e}"


def check(scenario: Scenario, outcomes: list[dict[str, Any]]) -> None:
    plain = Plain()
    for step in range(STEPS):
        if scenario.catalogue:
            whole = sum(outcome["rows"][step]["whole"] for outcome in outcomes)
            near(whole[1:], plain.rows("item", torch.arange(1, ITEMS)).detach(), f"step {step}, the catalogue")
        seen, norm = plain.step(scenario, step)
        for rank, outcome in enumerate(outcomes):
            for name, expected in seen[rank].items():
                near(outcome["rows"][step][name], expected.detach(), f"step {step}, rank {rank}, rows of {name}")
            assert outcome["norms"][step] == pytest.approx(norm, rel=1e-5)
    for name, table in plain.tables.items():
        parts = [outcome["held"][name] for outcome in outcomes]
        if parts[0][2]:  # held whole: alike, to the bit
            for ids, weight, _ in parts:
                assert torch.equal(weight, parts[0][1])
                near(weight, table.detach()[ids], name)
        else:
            assert sum(len(ids) for ids, _, _ in parts) == len(table)
            for ids, weight, _ in parts:
                near(weight, table.detach()[ids], name)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_features_are_part_of_rows_and_their_gradients_arrive(size: int) -> None:
    with Ranks(size) as ranks:
        for below, catalogue in product((0, BOUNDARY, 1000), (False, True)):
            scenario = Scenario(size, below, catalogue)
            check(scenario, ranks.run(train, scenario))


def test_every_optimizer_takes_them() -> None:
    """What two ranks hold after three steps is what one does; of one, test_tables.py says what they compute."""
    with Ranks(2) as ranks:
        for optimizer in ("exact", "lazy_adam", "rowwise_adagrad"):
            outcomes = ranks.run(train, Scenario(2, 0, catalogue=True, optimizer=optimizer))
            [alone] = run_ranks(1, train_for_two, optimizer)
            for name, (ids, weight, _) in alone["held"].items():
                whole = torch.zeros_like(weight)
                for own, part, _ in (outcome["held"][name] for outcome in outcomes):
                    whole[own] = part
                near(whole[ids], weight.double(), f"{optimizer}, {name}")
