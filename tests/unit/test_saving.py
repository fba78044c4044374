"""Checkpoints written while training goes on."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eupmim_dist.assemble import assemble_run, open_store
from eupmim_dist.checkpoint.layout import complete_steps, open_checkpoint
from eupmim_dist.checkpoint.load import open_sound
from eupmim_dist.checkpoint.run_dir import Start
from eupmim_dist.checkpoint.save import Saving
from eupmim_dist.checkpoint.writer import CheckpointWriter
from eupmim_dist.config.schema import Config
from eupmim_dist.errors import UserError
from eupmim_dist.parallel.world import init_world
from eupmim_dist.train.state import Run
from eupmim_dist.training import run_training
from tests.distributed.spawn import run_ranks
from tests.runs import WORLD, config_of, train_in

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
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
            open_sound(partial(open_checkpoint, paused), WORLD).progress
            == open_sound(partial(open_checkpoint, meanwhile), WORLD).progress
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


FAILING = """
import sys, time
from pathlib import Path
from eupmim_dist.checkpoint.writer import CheckpointWriter
from eupmim_dist.train import loop
from tests.runs import config_of, train_in

write, train_step, place = CheckpointWriter._write, loop.train_step, Path(sys.argv[1])

def slowly(*args):
    time.sleep(0.5)
    return write(*args)

def fail(run, step, prepared):
    if step == 6:
        raise MemoryError("no room")
    return train_step(run, step, prepared)

CheckpointWriter._write, loop.train_step = slowly, fail
train_in(config_of(place, checkpoint__every=6, checkpoint__asynchronous=True, evaluation__every=12), place / "run")
"""


def test_what_is_being_saved_when_training_fails_is_saved(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FAILING, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.endswith("MemoryError: no room\n"), done.stderr
    [saved] = complete_steps(tmp_path / "run")
    assert open_sound(partial(open_checkpoint, saved), WORLD).step == 6


def train_until_full(config: Config, run_dir: Path) -> tuple[str, int]:
    """The last rank cannot write the checkpoint of step 6, and rank 0 sees that the save is done two steps late."""
    torch.set_num_threads(1)
    world = init_world(cpu=True)
    run = assemble_run(config, world, open_store(config.data.dir, world))
    done = Saving.done
    seen: list[bool] = []

    def full(writer: CheckpointWriter, file: Path, *args: Any) -> Any:
        if world.rank == 1 and "000000006" in str(file):
            raise OSError(28, "No space left on device")
        return write(writer, file, *args)

    def late(saving: Saving) -> bool:
        seen.append(done(saving))
        return sum(seen) > 2

    CheckpointWriter._write = full  # type: ignore[method-assign]
    if world.is_main:
        Saving.done = late  # type: ignore[method-assign]
    try:
        run_training(run, Start(run_dir, None))
    except UserError as error:
        return str(error), run.progress.step
    return "no failure", run.progress.step


def test_all_ranks_end_at_one_step_with_what_failed_meanwhile_on_any(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, checkpoint__every=6, checkpoint__asynchronous=True, evaluation__every=1000, train__max_steps=1000
    )
    (first, step), other = run_ranks(2, train_until_full, config, tmp_path / "run")
    assert "step-000000006: cannot be read or written on rank 1: No space left on device" in first
    assert other == (first, step)
    assert 6 < step <= 12  # at the latest when the next one is due
    assert complete_steps(tmp_path / "run") == []


def test_a_run_asked_to_leave_does_not_evaluate_first(tmp_path: Path) -> None:
    config = config_of(tmp_path, train__prefetch=False)
    whole = train_in(config, tmp_path / "whole")

    def ask_in_step_3(run: Run) -> None:
        plan = run.tables.plan

        def planned(*args: Any, **options: Any) -> Any:
            run.stop_requested = run.stop_requested or run.progress.step == 2
            return plan(*args, **options)

        run.tables.plan = planned  # type: ignore[method-assign]

    stopped = train_in(config, tmp_path / "run", ask_in_step_3)
    assert (stopped.asked_to_leave, stopped.progress.step) == (True, 3)
    assert "valid" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert [path.name for path in complete_steps(tmp_path / "run")] == ["step-000000003"]
    again = train_in(config, tmp_path / "run")
    assert again.progress == whole.progress
    assert torch.equal(again.tables.shards["item"].weight, whole.tables.shards["item"].weight)


def test_a_run_asked_to_leave_before_its_first_step_saves_that_too(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    stopped = train_in(config, tmp_path / "run", lambda run: setattr(run, "stop_requested", True))
    assert (stopped.asked_to_leave, stopped.progress.step) == (True, 0)
    assert train_in(config, tmp_path / "run").progress == train_in(config, tmp_path / "whole").progress
