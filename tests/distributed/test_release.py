"""The released E-UPMiM gives the authors' figures at any number of ranks."""

from pathlib import Path

import pytest

from eupmim_dist.assemble import load_trained
from eupmim_dist.cli.import_model import import_model
from eupmim_dist.data.prepare import prepare_store
from eupmim_dist.evaluation.runner import Result, evaluate_model
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import run_ranks
from tests.unit.test_release import FIGURES


def evaluated(model: Path) -> dict[str, Result]:
    trained = load_trained(model, init_world(cpu=True))
    return {protocol: evaluate_model(trained, "test", protocol, [10]) for protocol in ("seed", "strict")}


def test_figures_of_the_release_at_two_and_three_ranks(shared_data: Path, tmp_path: Path) -> None:
    prepare_store(shared_data / "movielens-1m", tmp_path / "ml-1m", "eupmim")
    released = shared_data / "checkpoints" / "eupmim_movielens.pt"
    import_model(released, data=tmp_path / "ml-1m", out=tmp_path / "model", set_=None)
    for world_size in (2, 3):  # one rank: tests/unit/test_release.py
        for rank in run_ranks(world_size, evaluated, tmp_path / "model", timeout=120):
            assert rank["seed"].users == rank["strict"].users == 604
            assert rank["seed"].metrics == pytest.approx(
                {"hit_rate@10": 0.660596, "recall@10": 0.083750, "precision@10": 0.176325, "ndcg@10": 0.390002},
                abs=1e-6,
            )
            recall, hit_rate, ndcg, precision = FIGURES["eupmim", "test", "strict", 10]
            assert rank["strict"].metrics == pytest.approx(
                {"hit_rate@10": hit_rate, "recall@10": recall, "precision@10": precision, "ndcg@10": ndcg}, abs=1e-6
            )
