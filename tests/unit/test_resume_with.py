"""Going on with other settings, where that is asked for: the steps to come are made by them, and it stays on record."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from eupmim_dist.api import fit
from eupmim_dist.assemble import load_trained
from eupmim_dist.checkpoint.changes import changes_of
from eupmim_dist.checkpoint.contents import contents
from eupmim_dist.checkpoint.layout import resolve
from eupmim_dist.checkpoint.load import load_training
from eupmim_dist.checkpoint.run_dir import find_start
from eupmim_dist.checkpoint.state import model_tensors
from eupmim_dist.config.load import load_config
from eupmim_dist.errors import UserError
from eupmim_dist.train.step import prepare_step, train_step
from tests.runs import WORLD, config_of, start

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED = ("train.learning_rate=0.5", "train.clip_norm=2")
AS_ASKED = {"train__learning_rate": 0.5, "train__clip_norm": 2.0}


def last_step(tmp_path: Path, steps: int, *resume_with: str, **changes: Any) -> int:
    config = config_of(tmp_path, train__max_steps=steps, **changes)
    return fit(config, tmp_path / "run", resume_with=resume_with, cpu=True).step


def test_the_steps_to_come_are_made_by_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last_step(tmp_path, 6)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    config = config_of(tmp_path, train__max_steps=9, **AS_ASKED)
    with pytest.raises(UserError) as refused:
        find_start(tmp_path / "run", "auto", config, WORLD)
    options = " ".join(f"--resume-with {setting}" for setting in ("train.learning_rate=0.5", "train.clip_norm=2.0"))
    assert f"change it from here on by {options}, or give another" in refused.value.as_typed
    with pytest.raises(UserError, match="or give another run_dir") as refused:
        find_start(tmp_path / "run", "auto", config_of(tmp_path, **AS_ASKED, seed=4), WORLD)
    assert "resume" not in str(refused.value)

    last_step(tmp_path, 9, *ASKED)
    told = [
        "from step 6 on train.learning_rate is 0.5, before 0.01",
        "from step 6 on train.clip_norm is 2.0, before null",
    ]
    assert "\n".join(told) in capsys.readouterr().out
    by_hand = start(config)
    load_training(by_hand, resolve(tmp_path / "copy", "last"))
    by_hand.dense.module.train()
    for step in range(6, 9):
        train_step(by_hand, step, prepare_step(by_hand, step))
    found = load_trained(tmp_path / "run", WORLD, which="last")
    for name, tensor in model_tensors(found.model, found.tables).items():
        assert torch.equal(tensor, model_tensors(by_hand.model, by_hand.tables)[name]), name

    assert changes_of(tmp_path / "run") == contents(resolve(tmp_path / "run", "last"))["resumed_with"] == told
    assert load_config(tmp_path / "run" / "config.yaml").train.learning_rate == 0.5
    assert last_step(tmp_path, 10, *ASKED) == 10  # the same command goes on, and changes nothing
    assert last_step(tmp_path, 11, **AS_ASKED) == 11
    assert changes_of(tmp_path / "run") == told


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("model.dim=16", "resume_with model.dim: a run on its way can change train.learning_rate, .* but not this"),
        ("train.lr=1", "unknown key train.lr; it is set by train.learning_rate"),
        ("train.learning_rate", "resume_with train.learning_rate: write it as key=value"),
        ("train.learning_rate=-1", "train.learning_rate: .*greater than 0"),
        (
            "train.learning_rate=1",
            "resume_with: there is nothing to go on with in .*new; a new run has its settings by",
        ),
    ],
)
def test_what_a_run_cannot_go_on_with(tmp_path: Path, asked: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(config_of(tmp_path), tmp_path / "new", resume_with=asked, cpu=True)
    assert not (tmp_path / "new").exists()
