"""Baselines and a model on several ranks, each with its own items, against one rank."""

from pathlib import Path

import pytest
import torch

from eupmim_dist.assemble import assemble, without_model
from eupmim_dist.config.load import parse_config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.evaluation.protocols import PROTOCOLS
from eupmim_dist.evaluation.runner import PerUser, Result, evaluate_model, evaluate_scorer, held_out_users, ranking_of
from eupmim_dist.evaluation.scorers.interface import baselines, make_scorer
from eupmim_dist.parallel.world import World, init_world
from tests.distributed.spawn import run_ranks
from tests.stores import negatives, small_store


def measure(directory: Path, cutoffs: list[int], world: World | None = None) -> list[Result]:
    world = world or init_world(cpu=True)
    store = InteractionStore.open(directory)
    config = parse_config({"evaluation": {"batch_size": 4}}, "test")
    setup = without_model(config, world, store)
    users = held_out_users(setup, "test")
    results = [
        evaluate_scorer(
            make_scorer(name, ranking_of(setup)), name, users, PROTOCOLS[protocol], cutoffs, world, per_user=True
        )
        for name in baselines()
        for protocol in ("strict", "elmrec_direct")
    ]
    model = assemble(config, world, store)
    return [*results, *(evaluate_model(model, "test", name, cutoffs, per_user=True) for name in PROTOCOLS)]


@pytest.mark.parametrize(("num_users", "num_items", "cutoffs"), [(50, 40, [3, 10]), (25, 5, [2])])
def test_evaluations_do_not_depend_on_the_number_of_ranks(
    tmp_path: Path, num_users: int, num_items: int, cutoffs: list[int]
) -> None:
    known = {"negatives": negatives(num_users, num_items, 12)}
    small_store(tmp_path / "store", num_users=num_users, num_items=num_items, **known)
    one = measure(tmp_path / "store", cutoffs, World(0, 1, 0, 1, torch.device("cpu")))
    for world_size in (2, 3, 4):  # of 6 item rows, rank 3 of 4 owns none
        for results in run_ranks(world_size, measure, tmp_path / "store", cutoffs):
            for got, expected in zip(results, one, strict=True):
                assert got.users == expected.users
                assert got.metrics == pytest.approx(expected.metrics, abs=1e-12), got.model
                check_users(got.per_user, expected.per_user)
                assert (got.interests is None) == (expected.interests is None)
                if got.interests and expected.interests:
                    assert got.interests.tags() == pytest.approx(expected.interests.tags(), rel=1e-5)


def check_users(got: PerUser | None, expected: PerUser | None) -> None:
    assert got is not None
    assert expected is not None
    assert got.users.tolist() == expected.users.tolist()
    assert got.ranked.tolist() == expected.ranked.tolist()
    for name, values in expected.metrics.items():
        assert got.metrics[name].tolist() == values.tolist(), name
