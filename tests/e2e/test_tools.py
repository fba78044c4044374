"""The offline tools as a user calls them; in this process, for speed."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.e2e.test_mistakes import SETTINGS, check_line, command_line, written
from tests.stores import small_store


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory with a `store` and a finished `run`."""
    root = tmp_path_factory.mktemp("tools")
    small_store(root / "store")
    small_store(root / "other", seed=9)
    (root / "small.yaml").write_text(yaml.safe_dump(SETTINGS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert command_line("train --config small.yaml --run-dir run") == 0
        assert command_line("consolidate run --out model") == 0
        assert command_line("reshard run --nproc 3 --out shards") == 0
    return root


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = Path(shutil.copytree(finished, tmp_path / "place"))
    monkeypatch.chdir(root)
    return root


def metrics(path: str) -> object:
    assert command_line(f"evaluate {path} --top-n 5 --json metrics.json") == 0
    return json.loads(Path("metrics.json").read_text())["metrics"]


def test_every_form_of_a_model_evaluates_alike(place: Path) -> None:
    assert command_line("consolidate run --out parts --max-shard-size 3KB") == 0
    assert len(list(place.glob("parts/model-*-of-*.safetensors"))) > 2
    Path("store").rename("moved")
    assert command_line("consolidate shards --out moved-model --data moved") == 0
    Path("moved").rename("store")
    assert metrics("run") == metrics("model") == metrics("parts")
    assert metrics("run --last") == metrics("shards") == metrics("moved-model") != metrics("run")


def test_training_goes_on_from_what_was_resharded(place: Path) -> None:
    longer = "--set train.max_steps=6 --set evaluation.every=2"
    assert command_line(f"train --config small.yaml {longer} --run-dir a --resume shards") == 0
    assert command_line(f"train --config small.yaml {longer} --run-dir b --resume run") == 0
    assert command_line("verify a b") == 0
    [a], [b] = (list(place.glob(f"{run}/checkpoints/step-000000006/*.safetensors")) for run in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_verify_says_which_one_is_bad_and_why(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line("verify run model shards") == 0
    out = capsys.readouterr().out
    assert out.count(" sound ") == len(list(place.glob("run/checkpoints/step-*"))) + 2
    [shard] = place.glob("shards/shard-00002-*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert command_line("verify run model shards") == 2
    told = capsys.readouterr()
    check_line(told.err, "verify: 1 of .* not sound")
    [line] = [line for line in told.out.splitlines() if line.startswith("│ shards")]
    assert "shard-00002-of-00003" in line
    assert told.out.count(" sound ") == out.count(" sound ") - 1


def test_inspect_shows_and_writes_what_is_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line("inspect shards --stats --json contents.json") == 0
    shown, found = capsys.readouterr().out, json.loads(Path("contents.json").read_text())
    assert (found["kind"], found["ranks"], found["step"]) == ("checkpoint", 3, 4)
    assert found["tensors"]["table.user"]["shape"] == [40, 8]
    for row in (r"written by +│ 3 ranks", r"table\.user +│ 40 x 8 +│ F32 +│ +1,280 +│ +1 ", r"tables +│ +2 │ +568 "):
        assert re.search(row, shown), row
    assert command_line("inspect model") == 0
    assert "eupmim: 3 interest vectors of 8 numbers" in capsys.readouterr().out


CASES = [
    ("consolidate run --out new --max-shard-size 5", "--max-shard-size 5: write it as 500MB or 5GB"),
    ("consolidate run --out new --data other", "other: is another store than run/checkpoints/.* was trained on"),
    ("consolidate run --out new --data nowhere", "nowhere: no such directory"),
    ("consolidate model --out new", "model: is consolidated already"),
    ("reshard model --nproc 2 --out new", "model: is a model without training state"),
    ("reshard run --nproc 0 --out new", "'--nproc': Input should be greater than or equal to 1"),
    ("reshard run --nproc 2 --out model", "model: already exists; give another --out"),
    ("reshard nowhere --nproc 2 --out new", "nowhere: no such file or directory"),
    ("verify", "Missing argument 'PATH...'"),
    ("verify nowhere", "nowhere: no such directory"),
    ("verify store", "store: neither a run with checkpoints nor a checkpoint or model"),
    ("verify run small.yaml", "small.yaml: no such directory"),
    ("inspect store", "store: is an interaction store; `eupmim-dist audit store` tells what is in it"),
    ("inspect run --json nowhere/a.json", "--json nowhere/a.json: cannot be written"),
]


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_mistakes(
    finished: Path, line: str, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    before = written(finished)
    assert command_line(line) == 2
    check_line(capfd.readouterr().err, message)
    assert written(finished) == before
