"""The released checkpoints on the published data: import, evaluate, compare with an independent plain implementation.

MovieLens-1M as the authors of E-UPMiM published it; skipped where the data is not there.
"""

from pathlib import Path

import pytest
import torch

from eupmim_dist.api import evaluate
from eupmim_dist.assemble import load_trained
from eupmim_dist.cli.export import export
from eupmim_dist.cli.import_model import import_model
from eupmim_dist.config.schema import Config
from eupmim_dist.data.prepare import prepare_store
from eupmim_dist.evaluation import baselines
from eupmim_dist.evaluation.protocols import METRICS
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.parallel.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = World(0, 1, 0, 1, torch.device("cpu"))
RELEASED = {"eupmim": "eupmim_movielens.pt", "comirec_dr": "comirec_movielens.pt"}

# (model, split, protocol, N): recall, hit_rate, ndcg, precision. From an independent plain implementation of the
# models and of the protocols, in float64, which shares no code with this project.
FIGURES = {
    ("eupmim", "test", "strict", 10): (0.07133540, 0.62582781, 0.15690048, 0.14403974),
    ("eupmim", "test", "strict", 50): (0.22792032, 0.87251656, 0.19104064, 0.10298013),
    ("eupmim", "test", "comirec", 10): (0.05237161, 0.53973510, 0.29740555, 0.09751656),
    ("eupmim", "test", "comirec", 50): (0.19343764, 0.85430464, 0.36685498, 0.08003311),
    ("eupmim", "test", "seed", 10): (0.08375046, 0.66059603, 0.39000193, 0.17632450),
    ("eupmim", "test", "seed", 50): (0.32345203, 0.93708609, 0.47604006, 0.14516556),
    ("eupmim", "valid", "strict", 10): (0.07656703, 0.61423841, 0.15783048, 0.14205298),
    ("eupmim", "valid", "strict", 50): (0.22833588, 0.86092715, 0.18950869, 0.09592715),
    ("eupmim", "valid", "comirec", 10): (0.05800703, 0.52317881, 0.28823501, 0.09768212),
    ("eupmim", "valid", "comirec", 50): (0.19202652, 0.84271523, 0.35963781, 0.07360927),
    ("eupmim", "valid", "seed", 10): (0.08587173, 0.64238411, 0.38209883, 0.16390728),
    ("eupmim", "valid", "seed", 50): (0.33303202, 0.94370861, 0.47024588, 0.13745033),
    ("comirec_dr", "test", "strict", 10): (0.00158928, 0.05132450, 0.00555944, 0.00562914),
    ("comirec_dr", "test", "strict", 50): (0.00784643, 0.21026490, 0.00805442, 0.00652318),
    ("comirec_dr", "test", "comirec", 10): (0.00154151, 0.04801325, 0.02219120, 0.00496689),
    ("comirec_dr", "test", "comirec", 50): (0.00755478, 0.20364238, 0.05677387, 0.00596026),
    ("comirec_dr", "test", "seed", 10): (0.01388779, 0.31456954, 0.15483694, 0.04652318),
    ("comirec_dr", "test", "seed", 50): (0.06799704, 0.68708609, 0.24347476, 0.04556291),
    ("comirec_dr", "valid", "strict", 10): (0.00146171, 0.04470199, 0.00488673, 0.00513245),
    ("comirec_dr", "valid", "strict", 50): (0.01172848, 0.25165563, 0.00936276, 0.00721854),
    ("comirec_dr", "valid", "comirec", 10): (0.00146171, 0.04470199, 0.01881302, 0.00513245),
    ("comirec_dr", "valid", "comirec", 50): (0.01137811, 0.24503311, 0.06169443, 0.00662252),
    ("comirec_dr", "valid", "seed", 10): (0.01629117, 0.33609272, 0.16675017, 0.05082781),
    ("comirec_dr", "valid", "seed", 50): (0.06999725, 0.69370861, 0.24908497, 0.04453642),
}
# strict, test split, N = 10: recall, ndcg; from the same independent implementation
BASELINE_FIGURES = {"popularity": (0.0376, 0.1246), "ease": (0.1107, 0.2311)}


@pytest.fixture(scope="module")
def store(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "ml-1m"
    prepare_store(shared_data / "movielens-1m", path, "eupmim")
    return path


def imported(name: str, shared_data: Path, store: Path) -> Path:
    """The model directory that `eupmim-dist import` makes of a released checkpoint."""
    out = store.parent / name
    if not out.exists():
        import_model(shared_data / "checkpoints" / RELEASED[name], data=store, out=out, set_=None)
    return out


def test_what_the_authors_script_measures(shared_data: Path, store: Path) -> None:
    trained = load_trained(imported("eupmim", shared_data, store), WORLD)
    result = evaluate_model(trained, "test", "seed", [10])
    assert result.users == 604
    assert result.metrics == pytest.approx(
        {"hit_rate@10": 0.660596, "recall@10": 0.083750, "precision@10": 0.176325, "ndcg@10": 0.390002}, abs=1e-6
    )


@pytest.mark.parametrize("protocol", ["strict", "comirec", "seed"])
@pytest.mark.parametrize("split", ["test", "valid"])
@pytest.mark.parametrize("name", RELEASED)
def test_every_protocol_and_split(shared_data: Path, store: Path, name: str, split: str, protocol: str) -> None:
    trained = load_trained(imported(name, shared_data, store), WORLD)
    result = evaluate_model(trained, split, protocol, [10, 50])
    assert (result.model, result.users) == (name, 604)
    for cutoff in (10, 50):
        found = [result.metrics[f"{metric}@{cutoff}"] for metric in METRICS]
        assert found == pytest.approx(FIGURES[name, split, protocol, cutoff], abs=1e-6)


def test_the_settings_are_read_from_the_tensors(shared_data: Path, store: Path) -> None:
    eupmim, comirec = (load_trained(imported(name, shared_data, store), WORLD).config for name in RELEASED)
    assert eupmim.model == Config().model.model_copy(update={"unseen_users": "table"})
    assert eupmim.task.history_length == 10
    assert (comirec.model.name, comirec.model.dim, comirec.model.num_interests) == ("comirec_dr", 64, 4)


@pytest.mark.parametrize("name", RELEASED)
def test_an_exported_release_is_the_release(shared_data: Path, store: Path, tmp_path: Path, name: str) -> None:
    export(imported(name, shared_data, store), out=tmp_path / "out", format_name="authors")
    released = torch.load(shared_data / "checkpoints" / RELEASED[name], weights_only=True)
    exported = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    shapes = [{key: tensor.shape for key, tensor in tensors.items()} for tensors in (released, exported)]
    assert shapes[0] == shapes[1]  # the authors' load_state_dict is strict
    others = {key for key, tensor in released.items() if not torch.equal(tensor, exported[key])}
    unread = {"user_embeddings_var.weight", "capsule_network.proj.weight", "capsule_network.proj.bias"}
    assert others == (unread if name == "comirec_dr" else set())


@pytest.mark.parametrize("name", BASELINE_FIGURES)
def test_baselines(store: Path, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "HISTORIES", (10,))  # what the figures are of
        [result] = evaluate(None, baselines=[name], data=store, top_n=[10], cpu=True)
    found = result.metrics["recall@10"], result.metrics["ndcg@10"]
    assert found == pytest.approx(BASELINE_FIGURES[name], abs=5e-5)
