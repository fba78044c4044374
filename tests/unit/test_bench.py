"""The measurements measure what they say: sizes, counts and what is left behind; no test has a time in it."""

from pathlib import Path

import pytest
import torch

from eupmim_dist.assemble import assemble_run
from eupmim_dist.bench import checkpoint as bench_checkpoint
from eupmim_dist.bench.checkpoint import measure_checkpoint
from eupmim_dist.bench.plain import PlainStep
from eupmim_dist.bench.step import measure_step
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError
from eupmim_dist.train.step import PHASES, prepare_step, train_step
from tests.runs import WORLD, config_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_step(tmp_path: Path) -> None:
    measured = measure_step(config_of(tmp_path), WORLD, steps=2, repeats=3)
    assert measured["global batch"] == 8
    assert measured["training samples/s"] == pytest.approx(8000 / measured["training ms/step"])
    assert measured["evaluation users"] == 8


def test_where_a_step_goes_beside_the_authors(tmp_path: Path) -> None:
    measured = measure_step(config_of(tmp_path), WORLD, steps=2, repeats=2, plain=True)
    assert sum(measured[f"{phase} % of the step"] for phase in PHASES) == pytest.approx(100)
    ratio = measured["training samples/s"] / measured["the authors' step samples/s"]
    assert measured["times the authors' step"] == pytest.approx(ratio)
    assert measured["products of a step, GFLOP"] > 0


def test_the_authors_step_is_what_ours_computes(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, model={"name": "eupmim", "dim": 8, "num_heads": 2, "dropout": 0.0, "attention_dropout": 0.0}
    )
    run = assemble_run(config, WORLD, InteractionStore.open(config.data.dir))
    authors = PlainStep(run)
    for step in range(3):
        prepared = prepare_step(run, step)
        [(batch, candidates)] = prepared.micro_batches
        found = authors.loss(batch, candidates)
        authors.step(batch, candidates)
        shares = train_step(run, step, prepared).shares
        torch.testing.assert_close(found, torch.stack(list(shares.values())).sum(), rtol=1e-4, atol=1e-5)


def test_there_is_a_plain_step_of_the_authors_model_alone(tmp_path: Path) -> None:
    for changes in ({"model": {"name": "sasrec", "dim": 8}}, {"objective": {"name": "full_softmax"}}):
        config = config_of(tmp_path, **{"objective": {}, **changes})
        run = assemble_run(config, WORLD, InteractionStore.open(config.data.dir))
        with pytest.raises(UserError, match=r"^plain: is the authors'"):
            PlainStep(run)


def test_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_checkpoint, "PROBE_BYTES", 1 << 24)
    config = config_of(tmp_path, tables={"optimizer": "rowwise_adagrad"})
    place = tmp_path / "place"
    place.mkdir()
    rows, dim = 10_000, 64
    measured = measure_checkpoint(config, WORLD, rows, dim, place, rounds=2)
    small = 200_000  # bytes, of the model itself
    assert 4 * rows * dim < 1e9 * measured["model GB"] < 4 * rows * dim + small
    assert 4 * rows * (dim + 1) < 1e9 * measured["checkpoint GB"] < 4 * rows * (dim + 1) + small
    assert list(measured["phases"]) == ["save", "save meanwhile", "check", "load", "consolidate"]
    for phase in measured["phases"].values():
        assert len(phase["rounds"]) == 2
    assert not list(place.iterdir())


def test_a_checkpoint_benchmark_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench_checkpoint, "load_training", full)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(OSError, match="No space left"):
        measure_checkpoint(config_of(tmp_path), WORLD, 100, 8, place, rounds=1)
    assert not list(place.iterdir())
