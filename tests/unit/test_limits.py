"""Numbers that cannot be: refused before anything is taken, and nothing that is not finite is saved or ranked by."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eupmim_dist.assemble import load_trained
from eupmim_dist.checkpoint.layout import complete_steps, step_dir
from eupmim_dist.checkpoint.load import load_training
from eupmim_dist.checkpoint.manifest import Damaged
from eupmim_dist.checkpoint.run_dir import find_start
from eupmim_dist.checkpoint.save import Saving, save_checkpoint
from eupmim_dist.config.load import load_config
from eupmim_dist.errors import UserError
from eupmim_dist.evaluation.runner import evaluate_model
from eupmim_dist.hashing import sha256_of_json
from eupmim_dist.parallel import memory
from eupmim_dist.recommending import recommendations
from eupmim_dist.train.state import Run
from tests.runs import WORLD, config_of, start, train_in

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.clip_norm=.inf", r"train\.clip_norm: .*finite number"),
        ("train.learning_rate=.nan", r"train\.learning_rate: .*finite number"),
        ("tables.learning_rate=.inf", r"tables\.learning_rate: .*finite number"),
        ("objective.temperature=.inf", r"objective\.temperature: .*finite number"),
        ("model.dim=100000000000000000000", r"model\.dim: no number here is larger than 1,000,000,000,000,000"),
        ("train.max_steps=1000000000000001", r"train\.max_steps: no number here is larger"),
        ("evaluation.top_n=[10, 100000000000000000000]", r"evaluation\.top_n: no number here is larger"),
        ("model.dropout=0.999999", r"model\.dropout: .*less than or equal to 0\.99"),
        ("model.num_encoder_layers=257", r"model\.num_encoder_layers: .*256"),
        ("model.num_interests=2147483647", r"model\.num_interests: .*100"),
        ("train.learning_rate=1.0e+308", r"train\.learning_rate: .*less than or equal to"),
        ("seed=9223372036854775808", r"seed: "),
    ],
)
def test_settings_that_cannot_be(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, [override])


def test_a_seed_may_be_large() -> None:
    assert load_config(None, ["seed=9223372036854775807"]).seed == 2**63 - 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__dim": 1 << 20, "model__num_heads": 2}, "GB for the network"),
        ({"model": {"name": "youtube_dnn", "dim": 1 << 28, "hidden": [1]}}, "GB for the tables"),
        ({"task__history_length": 1 << 30}, "GB for a batch"),
        ({"train__global_batch_size": 1 << 30}, "GB for a batch"),
        ({"model": {"name": "gru4rec", "hidden_size": 1 << 20}}, "GB for the network"),
        ({"model": {"name": "gru4rec", "hidden_size": 1 << 30}}, None),
    ],
)
def test_what_no_memory_could_hold_is_refused_before_it_is_taken(
    tmp_path: Path, changes: dict[str, Any], told: str | None
) -> None:
    message = rf"this run needs [\d,.]+ GB of memory, and .* GB are free .*{told}" if told else "no memory could hold"
    with pytest.raises(UserError, match=message):
        start(config_of(tmp_path, **changes))


def test_memory_that_is_there_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)
    least = None
    for free in range(10_000, 400_000, 1_000):
        monkeypatch.setattr(memory, "available_bytes", lambda device, free=free: free)
        try:
            run = start(config)
        except UserError:
            continue
        least = free
        break
    held = sum(shard.weight.nbytes for shard in run.tables.shards.values()) * 3
    held += sum(p.nbytes for p in run.model.parameters()) * 4
    assert least is not None
    assert held < least < 2 * held


def spoil(run: Run, value: float) -> None:
    run.tables.shards["item"].weight[3] = value


def spoil_state(run: Run) -> None:
    next(iter(run.table_optimizer.row_state["user"].values()))[1] = torch.inf


@pytest.mark.parametrize("save", [save_checkpoint, Saving])
@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (lambda run: spoil(run, torch.nan), r"table\.item"),
        (lambda run: spoil(run, -torch.inf), r"table\.item"),
        (spoil_state, r"table_optimizer\.user\.\w+"),
        (lambda run: next(run.model.parameters()).data.fill_(torch.inf), r"dense\.[\w.]+"),
    ],
)
def test_what_is_not_finite_is_not_saved(
    tmp_path: Path, harm: Callable[[Run], None], name: str, save: Callable[..., Any]
) -> None:
    run = start(config_of(tmp_path))
    harm(run)
    with pytest.raises(UserError, match=rf"step 0: {name} holds numbers that are not finite, so it is not saved"):
        save(run, tmp_path / "run")
    assert not complete_steps(tmp_path / "run")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    run = start(config_of(tmp_path))
    spoil(run, value)
    with monkeypatch.context() as patch:
        patch.setattr("eupmim_dist.checkpoint.save.not_finite", lambda tensors: None)
        save_checkpoint(run, tmp_path / "run")
    with pytest.raises(Damaged, match=r"table\.item holds numbers that are not finite; use another checkpoint"):
        load_trained(tmp_path / "run", WORLD)
    begun = find_start(tmp_path / "run", "auto", run.config, WORLD)
    assert begun.checkpoint is not None
    with pytest.raises(Damaged, match="not finite"):
        load_training(start(run.config), begun.checkpoint)


@pytest.mark.parametrize("rank", [lambda run: evaluate_model(run, "valid", "strict", [5]), "recommend"])
def test_nobody_is_ranked_for_by_vectors_whose_products_overflow(tmp_path: Path, rank: Any) -> None:
    run = start(config_of(tmp_path))
    spoil(run, 1e38)
    with pytest.raises(UserError, match="EUPMiM: its vectors are not finite, or so long that their products are not"):
        list(recommendations(run, ["u1"], 3)) if rank == "recommend" else rank(run)


@pytest.mark.parametrize(
    "changes",
    [
        {"train__learning_rate": 1e38},
        {"train__l2": 1e38},
        {"train__learning_rate": 1e30, "tables": {"optimizer": "sgd"}},
        {"tables": {"optimizer": "lazy_adam", "learning_rate": 1e38}},
    ],
)
def test_a_training_that_diverges_ends_so(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"diverged|not finite"):
        train_in(config_of(tmp_path, **changes), tmp_path / "run")
    for step in complete_steps(tmp_path / "run"):  # of before
        load_trained(step, WORLD)


def test_a_manifest_without_progress_is_damaged(tmp_path: Path) -> None:
    run = start(config_of(tmp_path))
    save_checkpoint(run, tmp_path / "run")
    file = step_dir(tmp_path / "run", 0) / "manifest.json"
    content = json.loads(file.read_text())
    content["training"] = {}
    del content["checksum"]
    content["checksum"] = sha256_of_json(content)
    file.write_text(json.dumps(content))
    with pytest.raises(Damaged, match="no key training"):
        load_trained(tmp_path / "run", WORLD)
