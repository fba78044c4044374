"""The whole program on one GPU, where there is one."""

from pathlib import Path

import pytest
import torch

from eupmim_dist.assemble import assemble_run, load_trained, open_store
from eupmim_dist.checkpoint.run_dir import find_start, write_config
from eupmim_dist.config.load import parse_config
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.parallel.world import World
from eupmim_dist.train.state import Run
from eupmim_dist.training import evaluate_best, run_training
from tests.stores import small_store

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def train_on(device: str, tmp_path: Path, optimizer: str, memory: str) -> Run:
    world = World(0, 1, 0, 1, torch.device(device))
    store = small_store(tmp_path / "store", num_users=60)
    values = {
        "data": {"dir": str(store.path)},
        "task": {"history_length": 6},
        "model": {"dim": 8, "num_heads": 2, "dropout": 0.0, "attention_dropout": 0.0},
        "tables": {"optimizer": optimizer, "memory": memory},
        "objective": {"num_negatives": 5},
        "train": {"global_batch_size": 8, "max_steps": 20, "clip_norm": 1.0, "log_every": 5},
        "evaluation": {"every": 10, "top_n": [5], "metric": "recall@5"},
    }
    config = parse_config(values, "test")
    run_dir = tmp_path / f"{device}-{memory}".replace(":", "")
    run = assemble_run(config, world, open_store(config.data.dir, world))
    start = find_start(run_dir, "auto", config, world)
    write_config(run_dir, config)
    run_training(run, start)
    [result] = evaluate_best(run, run_dir)
    trained = load_trained(run_dir, world)
    assert evaluate_model(trained, "test", "strict", [5]).metrics == result.metrics
    return run


@pytest.mark.parametrize(
    ("optimizer", "memory"),
    [("exact", "device"), ("lazy_adam", "device"), ("rowwise_adagrad", "host"), ("sgd", "host")],
)
def test_a_gpu_trains_as_a_cpu_does(tmp_path: Path, optimizer: str, memory: str) -> None:
    ours = train_on("cuda:0", tmp_path, optimizer, memory)
    reference = train_on("cpu", tmp_path, optimizer, "device")
    for name, shard in reference.tables.shards.items():
        found = ours.tables.shards[name].weight
        assert found.device.type == ("cpu" if memory == "host" else "cuda")
        torch.testing.assert_close(found.cpu(), shard.weight, rtol=1e-2, atol=1e-3)
