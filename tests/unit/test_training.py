"""Training on one rank: every registered model learns, the golden curve holds, runs resume exactly."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from eupmim_dist.assemble import assemble_run, evaluate_best, load_trained, open_store, run_training
from eupmim_dist.checkpoint.layout import complete_steps, resolve
from eupmim_dist.checkpoint.load import load_training
from eupmim_dist.checkpoint.model_dir import consolidate
from eupmim_dist.checkpoint.run_dir import Start, find_start, write_config
from eupmim_dist.config.load import parse_config
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError
from eupmim_dist.parallel.world import World
from eupmim_dist.train.state import Run
from eupmim_dist.train.step import train_step
from tests.stores import small_store

WORLD = World(0, 1, 0, 1, torch.device("cpu"))
MODELS = [
    get_args(option.model_fields["name"].annotation)[0] for option in get_args(Config.model_fields["model"].annotation)
]
GOLDEN = Path(__file__).with_name("golden_losses.json")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(tmp_path: Path, **changes: Any) -> Config:
    if not (tmp_path / "store").exists():
        small_store(tmp_path / "store")
    values: dict[str, Any] = {
        "data": {"dir": str(tmp_path / "store"), "history_length": 6},
        "model": {"name": "eupmim", "dim": 8, "num_heads": 2, "num_encoder_layers": 1},
        "train": {"global_batch_size": 8, "num_negatives": 5, "learning_rate": 0.01, "log_every": 2, "max_steps": 12},
        "evaluation": {"every": 4, "metric": "recall@5", "patience": 0, "top_n": [5]},
        "checkpoint": {"every": 6},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return parse_config(values, "test")


def start(config: Config) -> Run:
    return assemble_run(config, WORLD, open_store(config.data.dir, WORLD))


def train_in(config: Config, run_dir: Path) -> Run:
    begun = find_start(run_dir, "auto", config)
    run = start(config)
    if begun.checkpoint:
        load_training(run, begun.checkpoint)
    write_config(run_dir, config)
    run_training(run, begun)
    return run


def losses(run: Run, number: int) -> list[float]:
    run.dense.module.train()
    return [float(torch.stack(list(train_step(run, step).values())).sum()) for step in range(number)]


@pytest.mark.parametrize("optimizer", ["exact", "rowwise_adagrad", "lazy_adam"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_with_every_table_optimizer(tmp_path: Path, name: str, optimizer: str) -> None:
    config = config_of(tmp_path, tables__optimizer=optimizer, model={"name": name, "dim": 8})
    values = losses(start(config), 80)
    assert sum(values[-10:]) < 0.97 * sum(values[:10])


def test_the_golden_curve_holds(tmp_path: Path) -> None:
    """A change that is not meant to change numbers must not. Deleting the file makes a new one."""
    config = config_of(tmp_path, model__dropout=0.0, model__attention_dropout=0.0)
    values = losses(start(config), 20)
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(values))
        pytest.fail(f"wrote {GOLDEN.name}; run again")
    assert values == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


def tensors_of(run: Run) -> dict[str, torch.Tensor]:
    tables = {name: shard.weight for name, shard in run.tables.shards.items()}
    return {**dict(run.model.named_parameters()), **tables}


@pytest.mark.parametrize("optimizer", ["exact", "rowwise_adagrad", "lazy_adam"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    whole = train_in(config_of(tmp_path, tables__optimizer=optimizer), tmp_path / "whole")
    first = config_of(tmp_path, tables__optimizer=optimizer, train__max_steps=6)
    train_in(first, tmp_path / "halves")
    resumed = train_in(config_of(tmp_path, tables__optimizer=optimizer), tmp_path / "halves")
    for name, tensor in tensors_of(whole).items():
        assert torch.equal(tensor, tensors_of(resumed)[name]), name
    logged = [
        {json.loads(line)["step"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()}
        for run in ("whole", "halves")
    ]
    assert logged[0] == logged[1] >= {2, 4, 6, 8, 10, 12}


def test_checkpoints_kept_are_the_best_and_the_last(tmp_path: Path) -> None:
    run = train_in(config_of(tmp_path), tmp_path / "run")
    kept = {int(path.name.removeprefix("step-")) for path in complete_steps(tmp_path / "run")}
    assert kept == {12, run.progress.best_step}
    assert resolve(tmp_path / "run").step == run.progress.best_step
    assert resolve(tmp_path / "run", "last").step == 12
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_a_best_found_at_the_end_is_saved(tmp_path: Path) -> None:
    config = config_of(tmp_path, evaluation__every=9, checkpoint__every=12, train__learning_rate=0.05)
    run = train_in(config, tmp_path / "run")
    assert resolve(tmp_path / "run").training["best_step"] == run.progress.best_step
    assert resolve(tmp_path / "run").step == run.progress.best_step


def test_resuming_from_elsewhere_never_touches_another_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_in(config_of(tmp_path), tmp_path / name)
    with pytest.raises(UserError, match="already holds another run"):
        find_start(tmp_path / "two", str(tmp_path / "one"), config_of(tmp_path))


def test_more_patience_goes_on_with_a_stopped_run(tmp_path: Path) -> None:
    changes = {"train__learning_rate": 1e-9, "train__max_steps": 20}
    train_in(config_of(tmp_path, **changes, evaluation__patience=2), tmp_path / "run")
    assert train_in(config_of(tmp_path, **changes, evaluation__patience=0), tmp_path / "run").progress.step == 20


@pytest.mark.parametrize("cut", ["metric", "top_n"])
def test_a_cutoff_beyond_the_catalogue_is_refused_before_training(tmp_path: Path, cut: str) -> None:
    value: Any = "recall@31" if cut == "metric" else [10, 31]
    with pytest.raises(UserError, match=rf"evaluation\.{cut}: top-N 31 is larger than the catalogue of 30"):
        start(config_of(tmp_path, **{f"evaluation__{cut}": value}))


def test_early_stopping_ends_the_run_and_stays_ended(tmp_path: Path) -> None:
    changes = {"train__learning_rate": 1e-9, "evaluation__patience": 2, "train__max_steps": 100}
    run = train_in(config_of(tmp_path, **changes), tmp_path / "run")
    assert run.progress.stopped
    assert run.progress.step == 12  # the best at 4, then two without a better one
    again = train_in(config_of(tmp_path, **changes), tmp_path / "run")
    assert again.progress.step == 12


def test_consolidated_and_run_give_the_same_metrics(tmp_path: Path) -> None:
    from eupmim_dist.evaluation.runner import evaluate_model

    run = train_in(config_of(tmp_path), tmp_path / "run")
    [best] = evaluate_best(run, tmp_path / "run")
    consolidate(resolve(tmp_path / "run"), tmp_path / "model")
    loaded = load_trained(tmp_path / "model", WORLD)
    assert evaluate_model(loaded, "test", "strict", [5]).metrics == best.metrics
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["metrics"] == best.metrics
    with pytest.raises(UserError, match="already exists"):
        consolidate(resolve(tmp_path / "run"), tmp_path / "model")


def test_run_directories_are_not_mixed_up(tmp_path: Path) -> None:
    train_in(config_of(tmp_path), tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.learning_rate: 0\.5, but .* was trained with 0\.01"):
        find_start(tmp_path / "run", "auto", config_of(tmp_path, train__learning_rate=0.5))
    with pytest.raises(UserError, match="already holds a run"):
        find_start(tmp_path / "run", "never", config_of(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="something that is not a run"):
        find_start(tmp_path / "other", "auto", config_of(tmp_path))
    assert find_start(tmp_path / "new", "auto", config_of(tmp_path)) == Start(tmp_path / "new", None)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    run = train_in(config_of(tmp_path), tmp_path / "run")
    last = resolve(tmp_path / "run", "last")
    file = next(last.path.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_training(run, last)
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match="cut short"):
        resolve(tmp_path / "run", "last")
    file.unlink()
    with pytest.raises(UserError, match="missing"):
        resolve(tmp_path / "run", "last")

    wider = start(config_of(tmp_path, model__dim=16))
    train_in(config_of(tmp_path), tmp_path / "second")
    with pytest.raises(UserError, match="is of another model"):
        load_training(wider, resolve(tmp_path / "second"))
    small_store(tmp_path / "other", seed=9)
    with pytest.raises(UserError, match="another store than"):
        load_trained(tmp_path / "second", WORLD, tmp_path / "other")
