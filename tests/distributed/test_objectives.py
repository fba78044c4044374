"""Objectives over 1 to 4 ranks: the full softmax against whole tables in one process, and whole trainings.

W ranks, G samples of the global batch, P predictions per sample, K interests, D dim.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import patch_environment
from torch import Tensor

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.data.batch import NO_ROW, UserBatch
from eupmim_dist.data.blocks import block_range
from eupmim_dist.models.interface import Encoded, Rows, TableSpec
from eupmim_dist.objectives import log_total
from eupmim_dist.objectives.full_softmax import FullSoftmax, FullSoftmaxConfig
from eupmim_dist.optim.tables import make_table_optimizer
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.verdict import judge
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import Ranks
from tests.distributed.test_invariance import (
    EUPMIM,
    check_same,
    first_gradients,
    joined,
    settings,
    start,
    train_and_evaluate,
)
from tests.distributed.test_tables import EVERYTHING, by_id, copies
from tests.oracles.objectives_plain import plain_full_softmax
from tests.oracles.tables_plain import PlainTable, initial_weight
from tests.stores import small_store

SEED, USERS, DIM, STEPS = 11, 9, 6, 2
NUM_STEPS = 20
WORLD_SIZES = pytest.mark.parametrize("size", [1, 2, 3, 4])


@pytest.fixture(scope="module")
def ranks() -> Iterator[dict[int, Ranks]]:
    with ExitStack() as stack:
        yield {size: stack.enter_context(Ranks(size)) for size in (1, 2, 3, 4)}


# ---- the full softmax alone, with a model that adds up rows


@dataclass(frozen=True)
class Scenario:
    rows: int = 23
    samples: int = 7
    positions: int = 2
    interests: int = 3
    readout: Any = "hard"
    temperature: float = 1.0
    discount: float = 0.0
    optimizer: Any = "lazy_adam"
    replicate_below: int = 0
    micro_batches: int = 1
    tile: tuple[int, int] = (64, 1 << 18)

    def batch(self, step: int) -> UserBatch:
        """The global one. The first user's predictions have no target; histories hold padding."""
        generator = torch.Generator().manual_seed(100 + step)
        target = torch.randint(1, self.rows, (self.samples, self.positions), generator=generator)
        target[0] = NO_ROW
        if self.positions > 1:
            target[-1, -1] = NO_ROW
        history = torch.randint(-1, self.rows, (self.samples, 3), generator=generator)
        return UserBatch(
            num_predictions=max(1, int((target != NO_ROW).sum())),
            capacity=self.samples,
            user=torch.randint(USERS - 2, (self.samples,), generator=generator),  # the last two are never asked for
            attributes=torch.zeros(self.samples, 0, dtype=torch.int64),
            history=history,
            position=torch.arange(self.positions).expand_as(target).contiguous(),
            target=target,
            counter=target,
        )

    def queries(self, step: int) -> Tensor:
        """[G, P, K, D], what the model adds rows to."""
        generator = torch.Generator().manual_seed(200 + step)
        return torch.randn(self.samples, self.positions, self.interests, DIM, generator=generator)

    @property
    def objective(self) -> FullSoftmax:
        config = FullSoftmaxConfig(readout=self.readout, temperature=self.temperature, discount=self.discount)
        return FullSoftmax(config, SimpleNamespace(), SimpleNamespace(one_window=True))  # type: ignore[arg-type]


def encoded(queries: Tensor, rows: Rows) -> Tensor:
    """queries [B, P, K, D] and what the history and the user add: [Q, K, D]."""
    added = rows["history"].sum(1) + 2.0 * rows["user"]
    return (queries + added[:, None, None]).flatten(0, 1)


def train(scenario: Scenario) -> dict[str, Any]:
    with patch.dict(log_total.TILES, cpu=scenario.tile):
        return train_in_tiles(scenario)


def train_in_tiles(scenario: Scenario) -> dict[str, Any]:
    """Losses, gradients and weights of each step, as a rank sees them."""
    world, objective = init_world(cpu=True), scenario.objective
    config = TablesConfig(optimizer=scenario.optimizer, replicate_below=scenario.replicate_below)
    specs = [TableSpec("item", scenario.rows, DIM, padding_row=0), TableSpec("user", USERS, DIM)]
    tables = ShardedTables(specs, SEED, world, config, scored_whole="item")
    optimizer = make_table_optimizer(config, tables, 0.02, 0.0)
    found: dict[str, Any] = {"weights": [copies(tables)], "losses": [], "queries": [], "rows": [], "norms": []}
    found["ids"] = {name: shard.ids() for name, shard in tables.shards.items()}
    first, stop = block_range(scenario.samples, world.rank, world.size)
    for step in range(STEPS):
        capacity = block_range(scenario.samples, 0, world.size)[1]
        batch = scenario.batch(step).samples(first, stop, capacity=capacity)
        queries = scenario.queries(step)[first:stop].requires_grad_()
        parts = [batch.micro_batch(index, scenario.micro_batches) for index in range(scenario.micro_batches)]
        drawn = [objective.draw(part, step) for part in parts]
        uses = [
            {"history": ("item", part.history), "user": ("user", part.user), **candidates.uses()}
            for part, candidates in zip(parts, drawn, strict=True)
        ]
        lookup, catalogue = tables.fetch(tables.plan(uses)), tables.catalogue()
        of_parts = queries.split([len(part) for part in parts])
        loss = torch.zeros(())
        for part, candidates, rows, some in zip(parts, drawn, lookup.rows, of_parts, strict=True):
            shares = objective(Encoded(encoded(some, rows)), rows, part, candidates, catalogue)
            (shares["cross_entropy"] * world.size).backward()
            loss += shares["cross_entropy"].detach()
        gradients = lookup.gradients(1.0 / world.size, catalogue)
        verdict = judge([], gradients, tables, None, world)
        optimizer.step(gradients, verdict)
        found["losses"].append(loss)
        found["queries"].append(queries.grad)
        found["rows"].append(by_id(tables, gradients))
        found["norms"].append(verdict.norm.item())
        found["weights"].append(copies(tables))
    return found


def whole(found: list[tuple[Tensor, Tensor]], replicated: bool, rows: int) -> tuple[Tensor, Tensor]:
    """Of ids and values on each rank: the ids, ascending, and the values in a float64 table of zeros."""
    if replicated:
        for ids, values in found:
            assert torch.equal(ids, found[0][0])
            assert torch.equal(values, found[0][1])
        found = found[:1]
    ids = torch.cat([ids for ids, _ in found])
    table = torch.zeros(rows, DIM, dtype=torch.float64)
    table[ids] = torch.cat([values for _, values in found]).double()
    return ids.sort().values, table


def near(found: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest: what rows have added up in another order and in float32."""
    error, largest = (found.double() - expected).abs().max(), expected.abs().max()
    assert largest > 0
    assert error <= 1e-5 * largest, f"off by {error:.2e} of {largest:.2e}"


def check(scenario: Scenario, ranks: list[dict[str, Any]]) -> None:
    size, sizes = len(ranks), {"item": scenario.rows, "user": USERS}
    replicated = {name: size > 1 and rows < scenario.replicate_below for name, rows in sizes.items()}

    def weights(step: int, name: str) -> Tensor:
        held = [(rank["ids"][name], rank["weights"][step][name]) for rank in ranks]
        ids, table = whole(held, replicated[name], sizes[name])
        assert torch.equal(ids, torch.arange(sizes[name]))
        return table

    for name, rows in sizes.items():
        assert torch.equal(weights(0, name), initial_weight(SEED, name, rows, DIM).double())
    for step in range(STEPS):
        batch, plain = scenario.batch(step), {name: PlainTable(weights(step, name)) for name in sizes}
        assert batch.target is not None
        queries = scenario.queries(step).double().requires_grad_()
        looked_up = {"history": plain["item"].rows(batch.history), "user": plain["user"].rows(batch.user)}
        loss = plain_full_softmax(
            encoded(queries, looked_up),
            plain["item"].weight,
            batch.target.flatten(),
            batch.num_predictions,
            readout=scenario.readout,
            temperature=scenario.temperature,
            discount=scenario.discount,
            places=batch.position,
        )
        loss.backward()
        assert queries.grad is not None
        torch.testing.assert_close(sum(rank["losses"][step] for rank in ranks).double(), loss, rtol=1e-5, atol=0)
        # The gradients of a rank's own queries are those of the global loss, times W: DDP averages over the ranks.
        near(torch.cat([rank["queries"][step] for rank in ranks]) / size, queries.grad)
        total = 0.0
        for name, table in plain.items():
            expected = table.take_gradient()
            ids, found = whole([rank["rows"][step][name] for rank in ranks], replicated[name], sizes[name])
            touched = torch.arange(sizes["item"]) if name == "item" else batch.user.unique()
            assert torch.equal(ids, touched), f"rows of {name} with a gradient"
            near(found, expected)
            total += float(expected.square().sum())
            changed = (weights(step + 1, name) != weights(step, name)).any(1)
            if scenario.optimizer != "exact":
                assert not changed[~torch.isin(torch.arange(sizes[name]), touched)].any(), name
            assert torch.equal(changed & expected.any(1), expected.any(1)), f"rows of {name} that did not move"
        for rank in ranks:
            assert rank["norms"][step] == pytest.approx(total**0.5, rel=1e-5)


SCENARIOS = {
    "plain": Scenario(),
    "one-interest": Scenario(interests=1, optimizer="sgd"),
    "mean-exact": Scenario(readout="mean", optimizer="exact"),
    "logsumexp-adagrad": Scenario(readout="logsumexp", optimizer="rowwise_adagrad", temperature=0.5),
    "target": Scenario(readout="target", micro_batches=2),
    "attention": Scenario(readout="attention", temperature=2.0),
    "tiles": Scenario(tile=(5, 500), readout="hard", micro_batches=2),
    "a-row-at-a-time": Scenario(tile=(2, 1), readout="attention", replicate_below=EVERYTHING),
    "few-rows": Scenario(rows=5, readout="target"),  # of 4 ranks one has none
    "one-rank-has-the-padding-alone": Scenario(rows=4, tile=(1, 1)),
    "two-items": Scenario(rows=3, samples=3),
    "few-samples": Scenario(samples=2, positions=3, readout="attention"),
    "few-samples-in-parts": Scenario(samples=2, positions=3, micro_batches=3, optimizer="sgd"),
    "discount": Scenario(positions=4, discount=0.7, micro_batches=2),
    "discount-logsumexp": Scenario(positions=4, discount=0.5, readout="logsumexp", temperature=0.5, rows=5),
    "discount-one-interest": Scenario(positions=3, discount=0.9, interests=1, replicate_below=EVERYTHING, samples=2),
    "parts": Scenario(samples=10, micro_batches=3, readout="logsumexp"),
    "replicated": Scenario(replicate_below=EVERYTHING, readout="attention"),
    "replicated-exact": Scenario(replicate_below=EVERYTHING, optimizer="exact", micro_batches=2),
    "replicated-few-rows": Scenario(rows=5, replicate_below=EVERYTHING),
    "replicated-users": Scenario(replicate_below=USERS + 1, readout="target"),
    "replicated-few-samples": Scenario(rows=3, samples=2, replicate_below=4, optimizer="rowwise_adagrad"),
}


@WORLD_SIZES
@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_full_softmax_over_shards_is_that_of_whole_tables(
    ranks: dict[int, Ranks], scenario: Scenario, size: int
) -> None:
    check(scenario, ranks[size].run(train, scenario))


# ---- with models, tasks and optimizers

SASREC = {"name": "sasrec", "num_layers": 1, "num_heads": 2, "dropout": 0.0}
COMIREC_SA = {"name": "comirec_sa", "num_interests": 2}
NEXT = {"name": "next_item", "history_length": 6}
EVERY = {"name": "every_position", "history_length": 6, "num_positions": 4}
FULL = {"name": "full_softmax"}
IN_BATCH = {"name": "sampled_softmax", "candidates": "in_batch"}
MIXED = {"name": "sampled_softmax", "candidates": "mixed", "num_negatives": 8}
REMI = {**MIXED, "hard_negatives": 0.5, "routing_regulariser": 0.1, "readout": "attention"}
PARTS = {"train": {"accumulation": 2}}
WHOLE = {"tables": {"replicate_below": 32}}  # the items, of which there are 31; there are 33 users
# table optimizer, model, task, objective, batch, what several ranks are set to, their numbers
TRAININGS = {
    "full-exact": ("exact", EUPMIM, NEXT, FULL, 7, {}, (2, 3, 4)),
    "full-lazy-every-position": ("lazy_adam", EUPMIM, EVERY, {**FULL, "readout": "target"}, 3, {}, (4,)),
    "full-lazy-sasrec": ("lazy_adam", SASREC, EVERY, FULL, 7, PARTS, (2, 3, 4)),
    "full-exact-sasrec-replicated": ("exact", SASREC, EVERY, FULL, 3, WHOLE, (4,)),
    "in-batch-lazy": ("lazy_adam", EUPMIM, NEXT, IN_BATCH, 12, {}, (2, 3, 4)),
    "in-batch-exact-sasrec": ("exact", SASREC, EVERY, IN_BATCH, 7, PARTS, (2, 3, 4)),
    "mixed-exact": ("exact", EUPMIM, NEXT, MIXED, 7, WHOLE, (3,)),
    "mixed-lazy-sasrec": ("lazy_adam", SASREC, EVERY, MIXED, 3, {}, (2, 4)),
    "uniform-lazy-sasrec": ("lazy_adam", SASREC, EVERY, {"num_negatives": 5}, 7, {}, (3,)),
    "remi": ("lazy_adam", COMIREC_SA, EVERY, REMI, 13, {}, (3,)),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_store(tmp_path_factory.mktemp("data") / "store", num_users=33, shortest=2).path


def values_of(store: Path, training: str) -> dict[str, Any]:
    optimizer, model, task, objective, batch, *_ = TRAININGS[training]
    return settings(store, optimizer, model, batch) | {"task": task, "objective": objective}


@pytest.mark.parametrize("training", TRAININGS)
def test_a_training_does_not_depend_on_the_number_of_ranks(ranks: dict[int, Ranks], store: Path, training: str) -> None:
    values, (*_, of_ranks, sizes) = values_of(store, training), TRAININGS[training]
    one = train_and_evaluate(values, NUM_STEPS)
    assert one["losses"][-10:].mean() < one["losses"][:10].mean()  # it does learn
    values |= {section: values[section] | change for section, change in of_ranks.items()}
    for size in sizes:
        check_same(ranks[size].run(train_and_evaluate, values, NUM_STEPS), one)


@pytest.mark.parametrize("training", TRAININGS)
def test_the_gradients_of_a_step_do_not_depend_on_the_number_of_ranks(
    ranks: dict[int, Ranks], store: Path, training: str
) -> None:
    """Adam would hide a wrong scale."""
    values = values_of(store, training)
    one, several = first_gradients(values), ranks[4].run(first_gradients, values)
    for name in one:
        torch.testing.assert_close(joined(several, name), joined([one], name), rtol=1e-4, atol=1e-7)


def targets_in_a_step(values: dict[str, Any]) -> Tensor:
    target = start(values).task.sample(0).target
    assert target is not None
    return target


def test_a_batch_above_has_a_target_on_two_ranks(ranks: dict[int, Ranks], store: Path) -> None:
    for training in ("in-batch-lazy", "in-batch-exact-sasrec"):
        one, other = ranks[2].run(targets_in_a_step, values_of(store, training))
        assert {*one.flatten().tolist()} & {*other.flatten().tolist()} - {NO_ROW}


def gradients_in(precision: str, values: dict[str, Any]) -> dict[str, Any]:
    AcceleratorState._reset_state(reset_partial_state=True)
    with patch_environment(ACCELERATE_MIXED_PRECISION=precision):
        found = first_gradients(values)
    AcceleratorState._reset_state(reset_partial_state=True)  # what runs next on these ranks is told nothing
    return found


@pytest.mark.parametrize("training", ["full-lazy-every-position", "full-exact-sasrec-replicated", "mixed-lazy-sasrec"])
def test_mixed_precision_is_that_of_one_rank_where_one_of_four_has_no_samples(
    ranks: dict[int, Ranks], store: Path, training: str
) -> None:
    """All ranks must send alike. In bfloat16 sums round by 2^-9; the bound, on a table's gradient, is some of these."""
    values = values_of(store, training)
    [exact], [one] = (ranks[1].run(gradients_in, precision, values) for precision in ("no", "bf16"))
    several = ranks[4].run(gradients_in, "bf16", values)
    expected, found, without = (joined(part, "table.item") for part in ([one], several, [exact]))
    assert (found - expected).norm() <= 0.02 * expected.norm()
    assert not torch.allclose(expected, without, rtol=1e-4, atol=0.0)  # it is in use
