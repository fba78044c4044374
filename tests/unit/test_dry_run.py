"""train --dry-run: it tells what a training would take, refuses what that would refuse, and writes nothing."""

import json
import re
from pathlib import Path

import pytest

from eupmim_dist import fit, training
from eupmim_dist.evaluation.scorers import ease
from tests.runs import command_line
from tests.stores import small_store
from tests.unit.test_board import SETTINGS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dry")
    small_store(root / "store")
    (root / "small.yaml").write_text(json.dumps(SETTINGS))
    return root


@pytest.fixture
def place(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    if not Path("runs/half").exists():
        fit(SETTINGS, "runs/half")
    return root


def test_it_tells_and_writes_nothing(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(place.rglob("*"))
    assert command_line("train --config small.yaml --run-dir runs/dry --cpu --dry-run") == 0
    out = capfd.readouterr().out
    assert sorted(place.rglob("*")) == before
    for told in ("comirec_dr: ", "tables  item ", "memory  at least ", "steps   12, of 8 samples; evaluations 3, of "):
        assert told in out
    assert re.search(r"time    about 0:00:0\d: .* ms a step, .* an evaluation", out)
    assert "(measured: 10 steps, 1 evaluation;" in out
    assert "dry run: nothing was written; runs/dry would begin\n" in out
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    longer = "--set train.max_steps=20 --resume-with train.learning_rate=0.1"
    assert command_line(f"train --config small.yaml {longer} --run-dir runs/half --cpu --dry-run") == 0
    out = capfd.readouterr().out
    assert "steps   8, of 8 samples; evaluations 2, of " in out
    assert "runs/half would go on from step 12\n" in out
    assert command_line("train --config small.yaml --run-dir runs/half --cpu --dry-run") == 0  # there is no step left
    assert "(measured: 0 steps, 1 evaluation;" in capfd.readouterr().out
    tuned = "--init-from runs/half --set train.learning_rate=0.1 --baseline ease"
    assert command_line(f"train --config small.yaml {tuned} --run-dir runs/tuned --cpu --dry-run") == 0
    assert "rows taken from runs/half" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--resume never --run-dir runs/half", "runs/half: already holds a run; use --resume auto"),
        ("--resume runs/none --run-dir runs/new", "runs/none: no such file or directory"),
        ("--set seed=9 --run-dir runs/half", "seed: 9, but runs/half/"),
        (
            "--resume-with train.learning_rate=1 --run-dir runs/new",
            "--resume-with: there is nothing to go on with in runs/new",
        ),
        ("--resume-with model.dim=4 --run-dir runs/half", "--resume-with model.dim: a run on its way can change"),
        (
            "--init-from runs/half --set model.dim=4 --run-dir runs/new",
            r"runs/half/checkpoints/step-\d+: is of another netw",
        ),
        ("--run-dir store", "store: already holds something that is not a run"),
        ("--run-dir small.yaml/run", "--run-dir small.yaml/run: cannot be written: Not a directory"),
        ("--baseline best --run-dir runs/new", "--baseline best: choose from "),
        ("--baseline ease --run-dir runs/new", "--baseline ease: a matrix of "),
    ],
)
def test_it_refuses_what_a_training_would(
    place: Path, options: str, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ease, "lack_of_memory", lambda *_: "is too large")
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("it began"))
    monkeypatch.setattr(training, "seconds_of_a_step", lambda *_: pytest.fail("it began"))
    before = sorted(place.rglob("*"))
    for dry in ("--dry-run", ""):
        assert command_line(f"train --config small.yaml {options} --cpu {dry}") == 2
        assert re.match(f"error: {message}", capfd.readouterr().err)
        assert sorted(place.rglob("*")) == before
