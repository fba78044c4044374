"""The released checkpoints give their figures at any number of ranks, near ties included."""

from pathlib import Path

import pytest

from eupmim_dist.assemble import load_trained
from eupmim_dist.cli.import_model import import_model
from eupmim_dist.data.prepare import prepare_store
from eupmim_dist.evaluation.protocols import METRICS
from eupmim_dist.evaluation.runner import Result, evaluate_model
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import run_ranks
from tests.unit.test_release import FIGURES, RELEASED

CUTOFFS = sorted({cutoff for *_, cutoff in FIGURES})


@pytest.fixture(scope="module")
def released(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the store and both imported models."""
    directory = tmp_path_factory.mktemp("released")
    prepare_store(shared_data / "movielens-1m", directory / "ml-1m", "eupmim")
    for name, file in RELEASED.items():
        import_model(shared_data / "checkpoints" / file, directory / "ml-1m", directory / name)
    return directory


def evaluated(released: Path) -> dict[tuple[str, str, str], Result]:
    world = init_world(cpu=True)
    models = {name: load_trained(released / name, world) for name in RELEASED}
    asked = dict.fromkeys((name, split, protocol) for name, split, protocol, _ in FIGURES)
    return {key: evaluate_model(models[key[0]], *key[1:], CUTOFFS) for key in asked}


@pytest.mark.parametrize("world_size", [2, 3])  # one rank: tests/unit/test_release.py
def test_released_models_give_their_figures(released: Path, world_size: int) -> None:
    for found in run_ranks(world_size, evaluated, released, timeout=120):
        authors = found["eupmim", "test", "seed"].metrics
        assert [authors[f"{metric}@10"] for metric in ("hit_rate", "recall", "precision", "ndcg")] == pytest.approx(
            [0.660596, 0.083750, 0.176325, 0.390002], abs=1e-6
        )
        for (*key, cutoff), figures in FIGURES.items():
            result = found[tuple(key)]
            assert result.users == 604
            assert [result.metrics[f"{metric}@{cutoff}"] for metric in METRICS] == pytest.approx(figures, abs=1e-6), key
