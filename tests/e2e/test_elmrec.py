"""ELMRec as users type it: two ranks train it and compare it by what it writes; one rank then finds the same."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from tests.e2e.test_mistakes import command_line
from tests.prompts import SETTINGS, unigram_tokenizer, with_explanations


def test_two_ranks_train_it_and_one_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with_explanations(tmp_path, [f"{'so ' * (n % 3)}good" for n in range(20)], num_users=40)
    unigram_tokenizer(tmp_path / "tokenizer")
    task = {"tokenizer": "tokenizer", "mix": ["sequential", "explanation"]}
    values = SETTINGS | {
        "data": {"dir": "store"},
        "task": SETTINGS["task"] | task,
        "train": {"global_batch_size": 8, "max_steps": 4, "l2": 0.0},
        "evaluation": {"protocol": "elmrec_explanation", "metric": "rouge_1", "every": 2, "top_n": [5]},
    }
    (tmp_path / "elmrec.yaml").write_text(yaml.safe_dump(values))
    compare = "compare elmrec.yaml --protocol elmrec_explanation --out out --json together.json"
    launch = [
        sys.executable,
        "-m",
        "eupmim_dist",
        "launch",
        "--cpu",
        "--nproc",
        "2",
        "--threads",
        "1",
        "--",
        *compare.split(),
    ]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "valid elmrec_explanation rouge_1" in done.stdout
    assert "rouge l" in done.stdout
    run = "out/elmrec-seed321"
    assert command_line(f"evaluate {run} --protocol elmrec_explanation --texts texts.csv --json alone.json") == 0
    [row] = json.loads(Path("together.json").read_text())["rows"]
    alone = json.loads(Path("alone.json").read_text())
    assert alone["explanations"] == 40
    for name in ("rouge_1", "rouge_2", "rouge_l"):
        assert row[name]["mean"] == pytest.approx(alone["metrics"][name])
    assert row["bleu_4"] == pytest.approx(alone["metrics"]["bleu_4"])
    texts = pl.read_csv("texts.csv")
    assert texts["rouge_1"].mean() == pytest.approx(alone["metrics"]["rouge_1"])
    capsys.readouterr()
    assert command_line(f"consolidate {run} --out model") == 0
    shutil.rmtree("tokenizer")
    assert command_line("recommend model --user u3 --top-n 3") == 0
    assert capsys.readouterr().out.count("│ Item ") == 3
