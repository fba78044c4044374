"""Checkpoints written while training goes on."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eupmim_dist.checkpoint.layout import complete_steps, open_checkpoint
from eupmim_dist.checkpoint.load import open_sound
from eupmim_dist.checkpoint.writer import CheckpointWriter
from eupmim_dist.errors import UserError
from tests.runs import WORLD, config_of, train_in

pytestmark = pytest.mark.usefixtures("one_thread")

write = CheckpointWriter._write


def test_what_is_saved_meanwhile_is_what_a_pause_would_have_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Any] = {"checkpoint__every": 3, "checkpoint__keep": 4}
    train_in(config_of(tmp_path, **kept), tmp_path / "paused")
    steps = []

    def slowly(writer: CheckpointWriter, *args: Any) -> Any:
        time.sleep(0.2)
        steps.append(run.progress.step)
        return write(writer, *args)

    monkeypatch.setattr(CheckpointWriter, "_write", slowly)

    def remember(started: Any) -> None:
        nonlocal run
        run = started

    run: Any = None
    train_in(config_of(tmp_path, **kept, checkpoint__asynchronous=True), tmp_path / "meanwhile", remember)
    assert any(step % 3 for step in steps), "no step was made while a checkpoint was written"
    paths = [complete_steps(tmp_path / name) for name in ("paused", "meanwhile")]
    assert [path.name for path in paths[0]] == [path.name for path in paths[1]]
    for paused, meanwhile in zip(*paths, strict=True):
        assert (
            open_sound(partial(open_checkpoint, paused), WORLD).training
            == open_sound(partial(open_checkpoint, meanwhile), WORLD).training
        )
        [one], [other] = paused.glob("*.safetensors"), meanwhile.glob("*.safetensors")
        tensors = load_file(one), load_file(other)
        assert tensors[0].keys() == tensors[1].keys()
        assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def test_a_failure_meanwhile_ends_the_training_and_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(writer: CheckpointWriter, file: Path, *args: Any) -> Any:
        if "000000006" in str(file):
            raise OSError(28, "No space left on device")
        return write(writer, file, *args)

    monkeypatch.setattr(CheckpointWriter, "_write", full)
    config = config_of(tmp_path, checkpoint__every=3, checkpoint__asynchronous=True, evaluation__every=12)
    with pytest.raises(UserError, match="step-000000006: cannot be read or written on rank 0: No space left on device"):
        train_in(config, tmp_path / "run")
    assert [path.name for path in complete_steps(tmp_path / "run")] == ["step-000000003"]
