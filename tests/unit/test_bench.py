"""The measurements measure what they say: sizes, counts and what is left behind; no test has a time in it."""

from pathlib import Path

import pytest

from eupmim_dist.bench import checkpoint as bench_checkpoint
from eupmim_dist.bench.checkpoint import measure_checkpoint
from eupmim_dist.bench.step import measure_step
from tests.runs import WORLD, config_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_step(tmp_path: Path) -> None:
    measured = measure_step(config_of(tmp_path), WORLD, steps=2, repeats=3)
    assert measured["global batch"] == 8
    assert measured["training samples/s"] == pytest.approx(8000 / measured["training ms/step"])
    assert measured["evaluation users"] == 8


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
