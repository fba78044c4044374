"""Checkpoints and models that earlier versions have written: tests/fixtures/format3 is of format 3.

They were written by `train` (12 steps, one rank, `checkpoint.every` 6) and `consolidate` of the version before tasks
and objectives were sections of their own; `expected.json` holds what that version went on to.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eupmim_dist.assemble import assemble_run, load_trained
from eupmim_dist.checkpoint.layout import open_checkpoint
from eupmim_dist.checkpoint.load import load_training
from eupmim_dist.checkpoint.manifest import read_manifest
from eupmim_dist.checkpoint.reshard import reshard
from eupmim_dist.checkpoint.run_dir import find_start
from eupmim_dist.config.migrate import migrated
from eupmim_dist.data.prepare import no_progress
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.synth import synthesize
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.export.model_dir import consolidate
from eupmim_dist.training import run_training
from tests.runs import WORLD

pytestmark = pytest.mark.usefixtures("one_thread")

FIXTURES = Path(__file__).parents[1] / "fixtures" / "format3"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
NAMES = {"eupmim": "eupmim", "comirec": "comirec_dr"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> InteractionStore:
    """The one they were trained on; a checkpoint refuses any other."""
    path = tmp_path_factory.mktemp("data") / "store"
    synthesize(path, 60, 130, mean_length=10, seed=1, force=False, progress=no_progress)
    return InteractionStore.open(path)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_todays(name: str) -> None:
    assert read_manifest(FIXTURES / name).format_version == 3
    config = open_checkpoint(FIXTURES / name).config
    assert (config.model.name, config.task.name) == (NAMES[name], "next_item")
    found: dict[str, Any] = {**config.task.model_dump(), **config.objective.model_dump()}
    assert (found["history_length"], found["min_history"], found["num_negatives"]) == (6, 3, 5)
    assert found["readout"] == {"eupmim": "mean", "comirec": "target"}[name]


@pytest.mark.parametrize("kind", ["", "-model"])
@pytest.mark.parametrize("name", NAMES)
def test_they_rank_as_they_did(name: str, kind: str, store: InteractionStore) -> None:
    trained = load_trained(FIXTURES / f"{name}{kind}", WORLD, store.path)
    metrics = evaluate_model(trained, "valid", "strict", [5]).metrics
    assert {f"valid/strict/{key}": value for key, value in metrics.items()} == pytest.approx(EXPECTED[name]["valid"])


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_as_it_did(name: str, store: InteractionStore, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(FIXTURES / name)
    checkpoint.config.data.dir = store.path
    start = find_start(tmp_path / "run", str(FIXTURES / name), checkpoint.config, WORLD)
    assert start.checkpoint is not None
    run = assemble_run(checkpoint.config, WORLD, store)
    load_training(run, start.checkpoint)
    run_training(run, start)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(EXPECTED[name]["losses"], rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_tools_make_of_them_is_of_todays_format(name: str, store: InteractionStore, tmp_path: Path) -> None:
    source = open_checkpoint(FIXTURES / name)
    reshard(source, 2, tmp_path / "two")
    consolidate(source, tmp_path / "model", store.path)
    shutil.copytree(FIXTURES / f"{name}-model", tmp_path / "before")
    for made in (tmp_path / "two", tmp_path / "model"):
        assert read_manifest(made).format_version == 5
        assert open_checkpoint(made).config == source.config
    weights = [(tmp_path / kind / "model.safetensors").read_bytes() for kind in ("before", "model")]
    assert weights[0] == weights[1]


def test_a_soft_read_out_and_a_hard_one_are_told_apart() -> None:
    old: dict[str, Any] = {"data": {}, "train": {}, "model": {"name": "eupmim", "hard_readout": True}}
    assert migrated(old, 3)["objective"]["readout"] == "hard"
    assert old["model"] == {"name": "eupmim", "hard_readout": True}  # untouched
    assert migrated(old, 5) is old


def test_what_did_nothing_is_left_out_and_all_places_stay_all() -> None:
    def of(objective: dict[str, Any], task: dict[str, Any], model: str = "eupmim") -> dict[str, Any]:
        old = {"model": {"name": model}, "objective": {"name": "sampled_softmax", **objective}, "task": task}
        return migrated(old, 4)

    task = {"name": "next_item"}
    assert of({"candidates": "in_batch", "num_negatives": 20}, task)["objective"] == {
        "name": "sampled_softmax",
        "candidates": "in_batch",
    }
    assert "log_q" not in of({"candidates": "uniform", "log_q": False}, task)["objective"]
    assert of({"candidates": "mixed", "log_q": False, "num_negatives": 20}, task)["objective"]["num_negatives"] == 20
    task = {"name": "every_position", "history_length": 6, "num_positions": None}
    assert of({}, task)["task"]["num_positions"] == 6
    assert of({}, task, "sasrec")["task"]["num_positions"] is None
    assert of({}, {**task, "num_positions": 9}, "sasrec")["task"]["num_positions"] == 6
