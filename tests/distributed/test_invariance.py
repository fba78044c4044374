"""World-size invariance (design 3.1): W ranks give the losses, weights, rows and metrics of one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.config.load import parse_config
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.parallel.world import init_world
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import train_step
from tests.distributed.spawn import run_ranks
from tests.stores import small_store

NUM_STEPS = 50
PROTOCOLS = ("strict", "comirec", "seed")


def settings(store: Path, optimizer: str, model: dict[str, Any], batch: int) -> dict[str, Any]:
    return {
        "seed": 5,
        "data": {"dir": str(store), "history_length": 6},
        "model": {"dim": 8, **model},
        "tables": {"optimizer": optimizer},
        "train": {"global_batch_size": batch, "num_negatives": 5, "learning_rate": 0.01, "l2": 1e-3},
        "evaluation": {"batch_size": 5, "top_n": [3, 10]},
    }


def train_and_evaluate(values: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    world = init_world(cpu=True)
    config = parse_config(values, source="test")
    run = assemble_run(config, world, open_store(config.data.dir, world))
    run.dense.module.train()
    before = weights(run)
    shares = [torch.stack(list(train_step(run, step).values())) for step in range(NUM_STEPS)]
    losses = torch.stack(shares)
    if world.size > 1:
        torch.distributed.all_reduce(losses)
    metrics = {
        (protocol, split): evaluate_model(run, split, protocol, [3, 10])
        for protocol in PROTOCOLS
        for split in ("valid", "test")
    }
    return {
        "losses": losses.sum(1),
        "before": before,
        "after": weights(run),
        "metrics": metrics,
    }


def weights(run: Run) -> dict[str, Tensor]:
    dense = {name: determined(name, p.detach().clone()) for name, p in run.model.named_parameters()}
    return {**dense, **{f"table.{name}": shard.weight.clone() for name, shard in run.tables.shards.items()}}


def joined(ranks: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.cat([rank[name] for rank in ranks]) if name.startswith("table.") else ranks[-1][name]


def determined(name: str, parameter: Tensor) -> Tensor:
    """What the loss determines of a parameter. A softmax does not feel a constant added to its scores, so the
    true gradient of the keys' bias and of the score's is zero, and Adam scales up whatever rounding leaves."""
    if name.endswith("qkv.bias"):
        return parameter.view(3, -1)[[0, 2]]
    return parameter.new_zeros(1) if name == "extractor.score.bias" else parameter


EUPMIM = {
    "name": "eupmim",
    "num_levels": 2,
    "num_encoder_layers": 1,
    "num_heads": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
CASES = [
    pytest.param("exact", EUPMIM, 12, (2, 3, 4), id="exact"),
    pytest.param("exact", EUPMIM, 3, (4,), id="exact-a-rank-without-samples"),
    pytest.param("rowwise_adagrad", EUPMIM, 7, (3,), id="adagrad-uneven"),
    pytest.param("lazy_adam", {"name": "comirec", "num_interests": 2}, 10, (2,), id="comirec-lazy"),
]


@pytest.mark.parametrize(("optimizer", "model", "batch", "sizes"), CASES)
def test_results_do_not_depend_on_the_number_of_ranks(
    tmp_path: Path, optimizer: str, model: dict[str, Any], batch: int, sizes: tuple[int, ...]
) -> None:
    small_store(tmp_path / "store", num_users=33)  # 33 users, 31 item rows, 6 users a split: nothing divides
    values = settings(tmp_path / "store", optimizer, model, batch)
    one = train_and_evaluate(values)
    assert one["losses"][-10:].mean() < one["losses"][:10].mean()  # it does learn
    for world_size in sizes:
        ranks = run_ranks(world_size, train_and_evaluate, values)
        for rank in ranks:
            torch.testing.assert_close(rank["losses"], one["losses"], rtol=1e-5, atol=0.0)
            for key, result in rank["metrics"].items():
                assert result.users == one["metrics"][key].users
                assert result.metrics == pytest.approx(one["metrics"][key].metrics, abs=1e-12)
        for name, after in one["after"].items():
            assert torch.equal(joined([rank["before"] for rank in ranks], name), one["before"][name])
            moved = (after - one["before"][name]).abs().max()
            difference = (joined([rank["after"] for rank in ranks], name) - after).abs().max()
            assert difference <= 2e-3 * moved, f"{name}: differs by {difference}, has moved by {moved}"


def first_gradients(values: dict[str, Any]) -> dict[str, Tensor]:
    """Gradients of the first step, of the dense parameters and of the rows: Adam would hide a wrong scale."""
    torch.set_num_threads(1)
    world = init_world(cpu=True)
    config = parse_config(values, source="test")
    run = assemble_run(config, world, open_store(config.data.dir, world))
    batch = run.sampler.sample(0)
    lookup = run.tables.lookup(run.model.ids(batch))
    share = torch.stack(list(run.dense.module(lookup.rows, batch).values())).sum()
    gradients = run.dense.backward(share, lookup)
    found = {name: p.grad.clone() for name, p in run.model.named_parameters()}
    for name, shard in run.tables.shards.items():
        whole = torch.zeros_like(shard.weight)
        whole[gradients[name].rows] = gradients[name].values
        found[f"table.{name}"] = whole
    return found


ABLATIONS: list[dict[str, Any]] = [
    {},
    {"graph": False},
    {"profile_attention": "none"},
    {"graph": False, "profile_attention": "none"},
    {"profile": False, "profile_attention": "none"},
    {"extractor": "linear", "profile_attention": "full", "hard_readout": False},
    {"extractor": "capsule", "orthogonal": False},
]


@pytest.mark.parametrize(
    ("batch", "ablation", "sizes"),
    [(12, {}, (2, 3, 4)), (2, {}, (2, 3, 4)), *((7, ablation, (2,)) for ablation in ABLATIONS)],
    ids=str,
)
def test_gradients_of_a_step_do_not_depend_on_the_number_of_ranks(
    tmp_path: Path, batch: int, ablation: dict[str, Any], sizes: tuple[int, ...]
) -> None:
    small_store(tmp_path / "store", num_users=33)
    values = settings(tmp_path / "store", "exact", {**EUPMIM, **ablation}, batch)
    one = first_gradients(values)
    for world_size in sizes:
        ranks = run_ranks(world_size, first_gradients, values)
        for name, gradient in one.items():
            torch.testing.assert_close(
                joined(ranks, name), gradient, rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
            )
