"""A search with processes that really train: from Python as the page shows it, then by the command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from eupmim_dist import prepare
from eupmim_dist.config.load import load_config
from tests.e2e.test_cli import eupmim
from tests.e2e.test_python import COLUMNS, block, run_block, shop_log


def test_the_pages_search_is_that_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    prepare(shop_log(), "data/shop", **COLUMNS)  # type: ignore[arg-type]
    found: Any = run_block(block("import tune"))["tuning"]
    told = capsys.readouterr().out
    assert "[4/4] trial " in told
    assert f"{found.best_value:.4f}" in told.splitlines()[-1]
    assert {trial.state for trial in found.trials} == {"done"}
    for trial in found.trials:
        lines = map(json.loads, (trial.run_dir / "metrics.jsonl").read_text().splitlines())
        assert trial.value == max(line.get("valid/strict/recall@10", 0.0) for line in lines)
    assert [path.parent for path in Path("runs/tune").glob("*/checkpoints")] == [found.best.run_dir]

    Path("base.yaml").write_text(
        "data: {dir: data/shop}\nmodel: {name: comirec_dr, dim: 16}\ntrain: {max_steps: 60}\nevaluation: {every: 20}\n"
    )
    space = "--search 'train.learning_rate=1e-4..1e-1 log' --search model.num_interests=1..4"
    ended = eupmim(tmp_path, f"tune --config base.yaml {space} --trials 4 --cpu")
    assert ended.code == 0, ended.err
    assert "/4] trial " not in ended.out  # all have ended
    assert f"{found.best.number}     {found.best_value:.4f}" in ended.out
    assert "train --config runs/tune/best.yaml" in ended.out
    assert load_config(Path("runs/tune/best.yaml")).model.dim == 16
    ended = eupmim(tmp_path, f"tune --config base.yaml {space} --search model.dim=8,16 --trials 4 --cpu")
    assert (ended.code, "holds another search: search model.dim 8,16" in ended.err) == (2, True)
