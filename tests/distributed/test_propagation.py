"""Propagation over 1 to 4 ranks against dense matrices and plain autograd in one process, in float64.

Rows and gradients within 1e-5 of the largest: what is added up in float32. Neither 13 users nor 38 item rows divide; of
5 users the last of four ranks has none, and some users and items have no edge.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.graph import GraphChoice, InteractionGraph
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.models.features import Feature
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import make_table_optimizer
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import Ranks
from tests.distributed.test_features import loss_of, near
from tests.distributed.test_invariance import check_same, settings, train_and_evaluate
from tests.oracles.propagation_plain import adjacency, clean_edges, propagated
from tests.oracles.tables_plain import initial_weight
from tests.stores import small_store

SEED, DIM, ITEMS, STEPS, RATE, LAYERS = 5, 6, 37, 3, 0.1, 3
KNOWN = ("test", "all", "train")
BELOW = (0, 20, 1000)
"""Values of replicate_below: both tables are sharded, the users are not, neither is."""


def genres(num_rows: int) -> Feature:
    values = np.random.default_rng(0).integers(1, 5, (num_rows, 1)).astype(np.int32)
    values[0] = 0
    return Feature("item", TableSpec("item:genre", 5, DIM, padding_row=0), values=values)


@dataclass(frozen=True)
class Scenario:
    store: Path
    size: int
    below: int
    catalogue: bool = False
    features: bool = False

    def ids(self, step: int, rank: int, num_users: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1000 * step + rank)
        items = torch.randint(NO_ROW, ITEMS + 1, (4, 2), generator=generator)
        return items, torch.randint(NO_ROW, num_users, (4,), generator=generator)

    def masked(self, step: int) -> tuple[Tensor, Tensor]:
        """Of the global batch: edges, pairs that are none, and nothing."""
        edges = sorted(clean_edges(sequences(self.store)))[step::3]
        users, items = zip(*edges, (0, ITEMS), (NO_ROW, 3), (1, NO_ROW), strict=True)
        return torch.tensor(users), torch.tensor(items)


def sequences(store: Path) -> list[list[int]]:
    opened = InteractionStore.open(store)
    return [part.tolist() for part in np.split(opened.items, opened.offsets[1:-1])]


def train(scenario: Scenario) -> dict[str, Any]:
    world = init_world(cpu=True)
    store = InteractionStore.open(scenario.store)
    config = TablesConfig(replicate_below=scenario.below, optimizer="sgd")
    specs = [TableSpec("item", ITEMS + 1, DIM, padding_row=0), TableSpec("user", store.num_users, DIM)]
    features = [genres(ITEMS + 1)] if scenario.features else []
    whole = "item" if scenario.catalogue else None
    graph = InteractionGraph(store, GraphChoice("history"))
    tables = ShardedTables(specs, SEED, world, config, whole, features, graph, LAYERS)
    optimizer = make_table_optimizer(config, tables, RATE, 0.0)
    seen = []
    for step in range(STEPS):
        items, users = scenario.ids(step, world.rank, store.num_users)
        uses = [{"items": ("item", items[:2]), "users": ("user", users)}, {"items": ("item", items[2:])}]
        lookup = tables.fetch(tables.plan(uses), tables.left_out(scenario.masked(step)))
        catalogue = tables.catalogue() if scenario.catalogue else None
        first, second = lookup.rows
        loss = loss_of(torch.cat([first["items"], second["items"]]), step) + loss_of(first["users"], step + 1)
        seen.append((torch.cat([first["items"], second["items"]]).detach().clone(), first["users"].detach().clone()))
        if catalogue is not None:
            part = catalogue.part
            loss = loss + (weights_of(part.shard.ids()[part.first : part.stop]) * F.softplus(catalogue.rows)).sum()
        loss.backward()
        optimizer.step(lookup.gradients(1.0, catalogue))
    held = {name: (shard.ids(), shard.weight.clone(), shard.replicated) for name, shard in tables.shards.items()}
    ranked = {}
    for known in KNOWN:
        part = tables.to_rank(known).scored("item")
        users = tables.to_rank(known).lookup({"users": ("user", torch.arange(store.num_users))}).rows[0]["users"]
        ranked[known] = (users, part.ids, part.rows()[part.places].clone())
    sent = tables.traffic.get("propagation")
    return {
        "seen": seen,
        "held": held,
        "ranked": ranked,
        "sent": 0 if sent is None else sent.bytes,
    }


def weights_of(ids: Tensor) -> Tensor:
    weights = (torch.arange((ITEMS + 1) * DIM).view(ITEMS + 1, DIM) * 31 % 17 - 8) / 5
    weights[0] = 0.0
    return weights[ids]


def check(scenario: Scenario, outcomes: list[dict[str, Any]]) -> None:
    num_users = len(sequences(scenario.store))
    sizes = {"item": ITEMS + 1, "user": num_users} | ({"item:genre": 5} if scenario.features else {})
    tables = {name: initial_weight(SEED, name, rows, DIM).double().requires_grad_() for name, rows in sizes.items()}
    codes = torch.from_numpy(genres(ITEMS + 1).values[:, 0]).long()  # type: ignore[index]

    def rows_without(left_out: set[tuple[int, int]], known: str = "train") -> tuple[Tensor, Tensor]:
        edges = clean_edges(sequences(scenario.store), known)
        items = tables["item"]
        if scenario.features:
            items = items + torch.where((codes > 0)[:, None], tables["item:genre"][codes], 0.0)
        return propagated(tables["user"], items, adjacency(edges, left_out, num_users, ITEMS + 1), LAYERS)

    for step in range(STEPS):
        masked = {(u, i) for u, i in zip(*(ids.tolist() for ids in scenario.masked(step)), strict=True)}
        of_users, of_items = rows_without(masked)
        loss = torch.zeros((), dtype=torch.float64)
        for rank, outcome in enumerate(outcomes):
            items, users = scenario.ids(step, rank, num_users)
            expected = [
                torch.where((ids == NO_ROW)[..., None], 0.0, rows[ids.clamp(min=0)])
                for ids, rows in ((items, of_items), (users, of_users))
            ]
            for found, rows in zip(outcome["seen"][step], expected, strict=True):
                near(found, rows.detach(), f"step {step}, rank {rank}")
            loss = loss + loss_of(expected[0], step) + loss_of(expected[1], step + 1)
        if scenario.catalogue:
            loss = loss + (weights_of(torch.arange(ITEMS + 1)) * F.softplus(of_items)).sum()
        loss.backward()
        with torch.no_grad():
            for table in tables.values():
                assert table.grad is not None
                table -= RATE * table.grad
                table.grad = None
    for known in KNOWN:
        of_users, of_items = (rows.detach() for rows in rows_without(set(), known))
        assert sum(len(outcome["ranked"][known][1]) for outcome in outcomes) == ITEMS + 1
        for outcome in outcomes:
            users, ids, rows = outcome["ranked"][known]
            near(users, of_users, f"users as they are ranked for, {known}")
            if len(ids):
                near(rows, of_items[ids], f"items as they are ranked, {known}")
    for outcome in outcomes:
        for name, table in tables.items():
            ids, weight, replicated = outcome["held"][name]
            assert replicated == (scenario.size > 1 and (sizes[name] < scenario.below or name == "item:genre"))
            if len(ids):
                near(weight, table.detach()[ids], name)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_rows_are_propagated_and_gradients_come_back_as_in_one_process(size: int, tmp_path: Path) -> None:
    for users, shortest in ((13, 0), (5, 3)):
        small_store(
            tmp_path / f"{users}",
            num_users=users,
            num_items=ITEMS,
            shortest=shortest,
            longest=9,
            split_rule="leave_one_out",
        )
    with Ranks(size) as ranks:
        for below, catalogue in product(BELOW, (False, True)):
            scenario = Scenario(tmp_path / ("13" if catalogue else "5"), size, below, catalogue, features=below == 0)
            outcomes = ranks.run(train, scenario)
            check(scenario, outcomes)
            assert (sum(outcome["sent"] for outcome in outcomes) > 0) == (size > 1)
        if size == 3:
            _check_run(ranks, tmp_path)


def _check_run(ranks: Ranks, tmp_path: Path) -> None:
    """A training of LightGCN in two micro-batches on three ranks is that of one rank and one micro-batch."""
    small_store(tmp_path / "run", num_users=33, split_rule="leave_one_out")
    values = settings(tmp_path / "run", "exact", {"name": "lightgcn", "num_interests": 1}, 7)
    values |= {"task": {"history_length": 1, "min_history": 1}, "objective": {"name": "full_softmax"}}
    one = train_and_evaluate(values)
    assert one["losses"][-10:].mean() < one["losses"][:10].mean()
    values["train"] |= {"accumulation": 2}
    check_same(ranks.run(train_and_evaluate, values), one)
