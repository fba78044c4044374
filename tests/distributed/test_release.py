"""The authors' released checkpoints, imported and evaluated at 1, 2 and 3 ranks.

The first four figures are those measured with the authors' own code; the others were computed by an independent
plain implementation (tests/oracles) in float64.
"""

from pathlib import Path

import pytest
import torch

from eupmim_dist.assemble import load_trained
from eupmim_dist.cli.import_model import import_model
from eupmim_dist.cli.prepare import prepare
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.parallel.world import World, init_world
from tests.distributed.spawn import run_ranks

METRICS = ("hit_rate@10", "recall@10", "precision@10", "ndcg@10")
EXPECTED = {
    ("eupmim", "test", "seed"): (0.660596, 0.083750, 0.176325, 0.390002),
    ("eupmim", "test", "strict"): (0.625827814570, 0.071335398978, 0.144039735099, 0.156900484100),
    ("eupmim", "test", "comirec"): (0.539735099338, 0.052371610402, 0.097516556291, 0.297405550567),
    ("eupmim", "valid", "seed"): (0.642384105960, 0.085871734343, 0.163907284768, 0.382098827577),
    ("eupmim", "valid", "strict"): (0.614238410596, 0.076567034993, 0.142052980132, 0.157830476735),
    ("eupmim", "valid", "comirec"): (0.523178807947, 0.058007025848, 0.097682119205, 0.288235012106),
    ("comirec", "test", "seed"): (0.314569536424, 0.013887794772, 0.046523178808, 0.154836940437),
    ("comirec", "test", "strict"): (0.051324503311, 0.001589280007, 0.005629139073, 0.005559441665),
    ("comirec", "test", "comirec"): (0.048013245033, 0.001541506437, 0.004966887417, 0.022191197360),
    ("comirec", "valid", "seed"): (0.336092715232, 0.016291171168, 0.050827814570, 0.166750173075),
    ("comirec", "valid", "strict"): (0.044701986755, 0.001461711841, 0.005132450331, 0.004886725706),
    ("comirec", "valid", "comirec"): (0.044701986755, 0.001461711841, 0.005132450331, 0.018813021461),
}


@pytest.fixture(scope="module")
def released(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the store `store` and both imported models."""
    directory = tmp_path_factory.mktemp("released")
    prepare(shared_data / "movielens-1m", "eupmim", directory / "store")
    for name in ("eupmim", "comirec"):
        import_model(shared_data / "checkpoints" / f"{name}_movielens.pt", directory / "store", directory / name)
    return directory


def measure(directory: Path, world: World | None = None) -> dict[tuple[str, str, str], tuple[int, dict[str, float]]]:
    world = world or init_world(cpu=True)
    found = {}
    for name in ("eupmim", "comirec"):
        model = load_trained(directory / name, world)
        for _, split, protocol in (key for key in EXPECTED if key[0] == name):
            result = evaluate_model(model, split, protocol, [10])
            found[name, split, protocol] = (result.users, result.metrics)
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_released_models_give_their_figures(released: Path, world_size: int) -> None:
    alone = World(0, 1, 0, 1, torch.device("cpu"))
    ranks = [measure(released, alone)] if world_size == 1 else run_ranks(world_size, measure, released, timeout=120)
    for found in ranks:
        for key, expected in EXPECTED.items():
            users, metrics = found[key]
            assert users == 604
            assert [metrics[name] for name in METRICS] == pytest.approx(expected, abs=1e-6), key
