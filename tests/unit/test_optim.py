"""Table optimizers against torch's and against plain formulas."""

import pytest
import torch

from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import ExactAdam, LazyAdam, RowwiseAdagrad
from eupmim_dist.parallel.tables import LocalTables

SPEC = TableSpec("item", 11, 4)
CPU = torch.device("cpu")


def steps(number: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 8, (3, 4), generator=generator) for _ in range(number)]  # rows 8.. never touched


def objective(rows: torch.Tensor) -> torch.Tensor:
    return (rows.sin() * torch.arange(rows.numel()).view(rows.shape).cos()).sum()


def test_exact_is_adam_on_an_embedding_with_l2_in_the_loss() -> None:
    tables = LocalTables([SPEC], 0, CPU)
    embedding = torch.nn.Embedding(11, 4)
    embedding.weight.data.copy_(tables.shards["item"].weight)
    reference = torch.optim.Adam(embedding.parameters(), lr=0.01)
    ours = ExactAdam(tables.shards, 0.01, 0.1)
    start = embedding.weight.detach().clone()
    for ids in steps(30):
        reference.zero_grad()
        (objective(embedding(ids)) + 0.05 * embedding.weight.square().sum()).backward()
        reference.step()
        lookup = tables.lookup({"item": ids})
        objective(lookup.rows["item"]).backward()
        ours.step(lookup.gradients(1.0))
    torch.testing.assert_close(tables.shards["item"].weight, embedding.weight.detach(), rtol=1e-4, atol=1e-5)
    assert (embedding.weight.detach()[8:].abs() < start[8:].abs()).all()  # untouched rows move too


def test_rowwise_adagrad_is_its_formula() -> None:
    tables = LocalTables([SPEC], 0, CPU)
    weight = tables.shards["item"].weight.clone()
    total = torch.zeros(11)
    ours = RowwiseAdagrad(tables.shards, 0.1, 0.05)
    for ids in steps(10):
        leaf = weight.clone().requires_grad_()
        objective(leaf[ids]).backward()
        for row in ids.unique().tolist():
            gradient = leaf.grad[row] + 0.05 * weight[row]
            total[row] += gradient.square().mean()
            weight[row] -= 0.1 * gradient / (total[row].sqrt() + 1e-8)
        lookup = tables.lookup({"item": ids})
        objective(lookup.rows["item"]).backward()
        ours.step(lookup.gradients(1.0))
    torch.testing.assert_close(tables.shards["item"].weight, weight, rtol=1e-4, atol=1e-6)


def test_lazy_adam_moves_touched_rows_as_sparse_adam_does() -> None:
    tables = LocalTables([SPEC], 0, CPU)
    embedding = torch.nn.Embedding(11, 4, sparse=True)
    embedding.weight.data.copy_(tables.shards["item"].weight)
    start = embedding.weight.detach().clone()
    reference = torch.optim.SparseAdam(embedding.parameters(), lr=0.01)
    ours = LazyAdam(tables.shards, 0.01, 0.0)
    for ids in steps(20):
        reference.zero_grad()
        objective(embedding(ids)).backward()
        reference.step()
        lookup = tables.lookup({"item": ids})
        objective(lookup.rows["item"]).backward()
        ours.step(lookup.gradients(1.0))
    torch.testing.assert_close(tables.shards["item"].weight, embedding.weight.detach(), rtol=1e-4, atol=1e-6)
    assert torch.equal(tables.shards["item"].weight[8:], start[8:])


@pytest.mark.parametrize("optimizer", [ExactAdam, RowwiseAdagrad, LazyAdam])
def test_state_has_an_entry_per_row(optimizer: type) -> None:
    tables = LocalTables([SPEC], 0, CPU)
    for state in optimizer(tables.shards, 0.1, 0.0).row_state["item"].values():
        assert len(state) == 11
