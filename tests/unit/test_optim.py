"""Table optimizers against torch's and against plain formulas, at one rank."""

import pytest
import torch
from torch import Tensor

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import TABLE_OPTIMIZERS, TableOptimizer, make_table_optimizer
from eupmim_dist.parallel.lookup import RowGradients
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.verdict import Verdict
from eupmim_dist.parallel.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = World(0, 1, 0, 1, torch.device("cpu"))
SPEC = TableSpec("item", 11, 4)
OTHERS = [TableSpec("user", 5, 4), TableSpec("wide", 3, 6)]  # one beside the rows of SPEC in the same tensor
USED = 8  # rows from here on are never touched


def make(
    optimizer: str, learning_rate: float, l2: float, weight_decay: float = 0.0
) -> tuple[ShardedTables, TableOptimizer]:
    config = TablesConfig(optimizer=optimizer, weight_decay=weight_decay)
    tables = ShardedTables([SPEC, *OTHERS], 0, WORLD, config)
    return tables, make_table_optimizer(config, tables, learning_rate, l2)


def steps(number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, USED, (3, 4), generator=generator) for _ in range(number)]


def objective(rows: Tensor) -> Tensor:
    return (rows.sin() * torch.arange(rows.numel()).view(rows.shape).cos()).sum()


def gradients_of(tables: ShardedTables, ids: Tensor) -> list[RowGradients]:
    lookup = tables.lookup({"item": ("item", ids)})
    objective(lookup.rows[0]["item"]).backward()
    return lookup.gradients(1.0)


def by_id(tables: ShardedTables, name: str = "item", rows: Tensor | None = None) -> Tensor:
    """The rows, or a tensor with an entry for each, in the order of their ids."""
    shard = tables.shards[name]
    return (shard.weight if rows is None else rows)[shard.ids().argsort()].clone()


def verdict(*, ok: bool = True, factor: float | None = None) -> Verdict:
    return Verdict(torch.tensor(1.0), torch.tensor(ok), None if factor is None else torch.tensor(factor))


def everything(tables: ShardedTables, optimizer: TableOptimizer) -> dict[str, Tensor]:
    """The whole tensors with what pads them, the optimizer's state and its count of steps."""
    states = {f"{name}.{key}": value for name, state in optimizer.row_state.items() for key, value in state.items()}
    groups = {f"group {number}": group.weight for number, group in enumerate(tables.groups)}
    return {name: value.clone() for name, value in {**groups, **states, "steps": optimizer.num_steps}.items()}


def test_exact_is_adam_on_an_embedding_with_l2_in_the_loss() -> None:
    tables, ours = make("exact", 0.01, 0.1)
    embedding = torch.nn.Embedding(11, 4)
    embedding.weight.data.copy_(by_id(tables))
    reference = torch.optim.Adam(embedding.parameters(), lr=0.01)
    start = embedding.weight.detach().clone()
    for ids in steps(30):
        reference.zero_grad()
        (objective(embedding(ids)) + 0.05 * embedding.weight.square().sum()).backward()
        reference.step()
        ours.step(gradients_of(tables, ids))
    torch.testing.assert_close(by_id(tables), embedding.weight.detach(), rtol=1e-4, atol=1e-5)
    assert (embedding.weight.detach()[USED:].abs() < start[USED:].abs()).all()  # untouched rows move too


def test_exact_moves_tables_that_no_one_asked_for() -> None:
    tables, ours = make("exact", 0.01, 0.1)
    before = {name: by_id(tables, name) for name in ("user", "wide")}
    for ids in steps(3):
        ours.step(gradients_of(tables, ids))
    for name, rows in before.items():
        assert (by_id(tables, name).abs() < rows.abs()).all(), name


def test_sgd_is_its_formula() -> None:
    tables, ours = make("sgd", 0.1, 0.05)
    weight = by_id(tables)
    for ids in steps(10):
        leaf = weight.clone().requires_grad_()
        objective(leaf[ids]).backward()
        touched = ids.unique()
        assert leaf.grad is not None
        weight[touched] -= 0.1 * (leaf.grad[touched] + 0.05 * weight[touched])
        ours.step(gradients_of(tables, ids))
    torch.testing.assert_close(by_id(tables), weight, rtol=1e-4, atol=1e-6)


def test_rowwise_adagrad_is_its_formula() -> None:
    tables, ours = make("rowwise_adagrad", 0.1, 0.05)
    weight = by_id(tables)
    total = torch.zeros(11)
    for ids in steps(10):
        leaf = weight.clone().requires_grad_()
        objective(leaf[ids]).backward()
        assert leaf.grad is not None
        for row in ids.unique().tolist():
            gradient = leaf.grad[row] + 0.05 * weight[row]
            total[row] += gradient.square().mean()
            weight[row] -= 0.1 * gradient / (total[row].sqrt() + 1e-8)
        ours.step(gradients_of(tables, ids))
    torch.testing.assert_close(by_id(tables), weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(by_id(tables, rows=ours.row_state["item"]["sum"]), total, rtol=1e-4, atol=1e-6)


def test_lazy_adam_moves_touched_rows_as_sparse_adam_does() -> None:
    tables, ours = make("lazy_adam", 0.01, 0.0)
    embedding = torch.nn.Embedding(11, 4, sparse=True)
    embedding.weight.data.copy_(by_id(tables))
    start = embedding.weight.detach().clone()
    reference = torch.optim.SparseAdam(embedding.parameters(), lr=0.01)
    for ids in steps(20):
        reference.zero_grad()
        objective(embedding(ids)).backward()
        reference.step()
        ours.step(gradients_of(tables, ids))
    torch.testing.assert_close(by_id(tables), embedding.weight.detach(), rtol=1e-4, atol=1e-6)
    assert torch.equal(by_id(tables)[USED:], start[USED:])


@pytest.mark.parametrize(("l2", "weight_decay"), [(0.0, 0.3), (0.05, 0.3), (0.05, 0.0)])
def test_lazy_adam_is_adamw_on_the_touched_rows(l2: float, weight_decay: float) -> None:
    """AdamW's formula (Loshchilov and Hutter, algorithm 2): L2 goes through the moments, the decay does not."""
    tables, ours = make("lazy_adam", 0.01, l2, weight_decay)
    weight = by_id(tables).double()
    first, second = torch.zeros(11, 4).double(), torch.zeros(11, 4).double()
    for number, ids in enumerate(steps(20), start=1):
        leaf = weight.clone().requires_grad_()
        objective(leaf[ids]).backward()
        assert leaf.grad is not None
        for row in ids.unique().tolist():
            gradient = leaf.grad[row] + l2 * weight[row]
            first[row] = 0.9 * first[row] + 0.1 * gradient
            second[row] = 0.999 * second[row] + 0.001 * gradient.square()
            moved = first[row] / (1 - 0.9**number) / ((second[row] / (1 - 0.999**number)).sqrt() + 1e-8)
            weight[row] -= 0.01 * (moved + weight_decay * weight[row])
        ours.step(gradients_of(tables, ids))
    torch.testing.assert_close(by_id(tables), weight.float(), rtol=1e-4, atol=1e-6)


def test_lazy_adam_is_torchs_adamw_where_every_row_is_touched() -> None:
    tables, ours = make("lazy_adam", 0.01, 0.0, weight_decay=0.3)
    embedding = torch.nn.Embedding(11, 4)
    embedding.weight.data.copy_(by_id(tables))
    reference = torch.optim.AdamW(embedding.parameters(), lr=0.01, weight_decay=0.3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        ids = torch.randperm(11, generator=generator)
        reference.zero_grad()
        objective(embedding(ids)).backward()
        reference.step()
        ours.step(gradients_of(tables, ids))
    torch.testing.assert_close(by_id(tables), embedding.weight.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_other_tables_of_the_tensor_are_left_alone(optimizer: str) -> None:
    tables, ours = make(optimizer, 0.1, 0.0)
    before = {name: by_id(tables, name) for name in ("user", "wide")}
    for ids in steps(5):
        ours.step(gradients_of(tables, ids))
    for name, rows in before.items():
        assert torch.equal(by_id(tables, name), rows), name


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_state_has_an_entry_per_row(optimizer: str) -> None:
    tables, ours = make(optimizer, 0.1, 0.0)
    assert ours.row_state.keys() == tables.shards.keys()
    for name, state in ours.row_state.items():
        for value in state.values():
            assert len(value) == tables.shards[name].spec.rows
    assert {key: value.ndim for key, value in ours.row_state["item"].items()} == {
        "exact": {"exp_avg": 2, "exp_avg_sq": 2},
        "lazy_adam": {"exp_avg": 2, "exp_avg_sq": 2},
        "rowwise_adagrad": {"sum": 1},
        "sgd": {},
    }[optimizer]


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_a_skipped_step_changes_nothing(optimizer: str) -> None:
    decay = 0.1 if optimizer == "lazy_adam" else 0.0
    (tables, ours), (other, reference) = (make(optimizer, 0.1, 0.05, decay) for _ in range(2))
    refused = verdict(ok=False, factor=float("nan"))
    for number, ids in enumerate(steps(6)):
        if number in (0, 3, 4):  # also as the first of all
            before = everything(tables, ours)
            gradients = gradients_of(tables, ids)
            gradients[0].values[1] = float("nan")
            gradients[0].values[0] = float("inf")
            ours.step(gradients, refused)
            after = everything(tables, ours)
            for name, value in before.items():
                assert torch.equal(after[name], value), name
        else:
            ours.step(gradients_of(tables, ids), verdict())
            reference.step(gradients_of(other, ids), verdict())
    assert float(ours.num_steps) == 3
    there = everything(other, reference)
    for name, value in everything(tables, ours).items():
        assert torch.equal(value, there[name]), name  # nor does it leave anything for the steps after it


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_the_factor_multiplies_the_gradient_and_not_the_decay(optimizer: str) -> None:
    decay = 0.1 if optimizer == "lazy_adam" else 0.0
    (tables, ours), (other, reference) = (make(optimizer, 0.1, 0.05, decay) for _ in range(2))
    for ids in steps(6):
        ours.step(gradients_of(tables, ids), verdict(factor=0.3))
        scaled = [RowGradients(part.rows, part.values * 0.3) for part in gradients_of(other, ids)]
        reference.step(scaled)
    torch.testing.assert_close(by_id(tables), by_id(other), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_the_schedule_multiplies_the_rate(optimizer: str) -> None:
    """A rate of a quarter, for one step, and then the whole again."""
    tables, ours = make(optimizer, 0.1, 0.05)
    other, reference = make(optimizer, 0.1, 0.05)
    first, second = steps(2)
    ours.step(gradients_of(tables, first), rate_factor=0.25)
    reference.learning_rate = 0.025
    reference.step(gradients_of(other, first))
    assert torch.equal(by_id(tables), by_id(other))
    reference.learning_rate = 0.1
    ours.step(gradients_of(tables, second))
    reference.step(gradients_of(other, second))
    assert torch.equal(by_id(tables), by_id(other))


@pytest.mark.parametrize("optimizer", TABLE_OPTIMIZERS)
def test_a_rate_of_zero_moves_nothing(optimizer: str) -> None:
    tables, ours = make(optimizer, 0.1, 0.05)
    before = by_id(tables)
    for ids in steps(2):
        ours.step(gradients_of(tables, ids), rate_factor=0.0)
    assert torch.equal(by_id(tables), before)


def test_tables_may_have_a_rate_of_their_own() -> None:
    config = TablesConfig(learning_rate=0.5)
    tables = ShardedTables([SPEC], 0, WORLD, config)
    assert make_table_optimizer(config, tables, 0.1, 0.0).learning_rate == 0.5
    assert make_table_optimizer(TablesConfig(), tables, 0.1, 0.0).learning_rate == 0.1
