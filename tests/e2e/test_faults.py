"""What a training does when a rank is killed, fails alone, or cannot write; docs/faults.md tells it to users."""

import random
import re
import shlex
import sys
import time
from pathlib import Path

import pytest

from eupmim_dist.checkpoint.layout import complete_steps
from tests.crash.killing import Setting, differences, kill_and_finish, train_through
from tests.e2e.test_cli import eupmim
from tests.e2e.test_launch import TWO_ON_CPU, env, finish, run, start  # noqa: F401
from tests.stores import small_store


@pytest.mark.skipif(sys.platform != "linux", reason="finds its ranks in /proc")
def test_a_training_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Two kills; `make crash-test` makes forty."""
    store = small_store(tmp_path / "store", num_users=300, num_items=300).path
    setting = Setting(store, steps=60, evaluate_every=20, save_every=10, batch=16)
    train_through(setting, tmp_path / "whole")
    kills = kill_and_finish(setting, tmp_path / "killed", 2, random.Random(2), asynchronous=True)
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    assert len(kills) == 2
    assert all(kill.seconds < 10 for kill in kills), kills


@pytest.fixture
def training(tmp_path: Path) -> list[str]:
    """12 steps, a checkpoint every 6."""
    small_store(tmp_path / "store", num_items=300)
    sizes = "--set model.dim=64 --set task.history_length=6 --set train.global_batch_size=8 --set train.max_steps=12"
    rhythm = "--set checkpoint.every=6 --set evaluation.every=12 --set train.log_every=1"
    paths = ["--set", f"data.dir={tmp_path / 'store'}", "--run-dir", str(tmp_path / "run")]
    return ["--", "train", *paths, *sizes.split(), *rhythm.split()]


def test_a_rank_that_fails_alone_ends_all_at_once_with_its_reason(tmp_path, env, training):  # noqa: F811
    process = start([*TWO_ON_CPU, *training], env | {"BREAK_STEP": "7"})
    while process.poll() is None and not complete_steps(tmp_path / "run"):
        time.sleep(0.02)
    saved = time.monotonic()
    code, _, err = finish(process)
    assert time.monotonic() - saved < 15
    assert code == 1
    assert err.splitlines()[1:] == ["error: MemoryError: no room for it (eupmim-dist --debug shows where)"]
    assert [path.name for path in complete_steps(tmp_path / "run")] == ["step-000000006"]


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path, env, training):  # noqa: F811
    # As on a full disk, a write fails half-way: no file may become larger than 100 blocks, and a rank's part does.
    meanwhile = [*TWO_ON_CPU, "--max-restarts", "2", *training, "--set", "checkpoint.asynchronous=true"]
    limited = ["sh", "-c", f"ulimit -f 100; exec {shlex.join(meanwhile)}"]
    code, _, err = run(limited, env)
    assert code == 2, err
    where = f"{tmp_path / 'run' / 'checkpoints' / 'step-000000006'}"
    assert err.splitlines()[1:] == [f"error: {where}: cannot be read or written on rank 0: File too large"]
    assert complete_steps(tmp_path / "run") == []
    ended = eupmim(tmp_path, shlex.join([*training[1:], "--cpu"]))
    assert ended.code == 0, ended.err
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step-000000006", "step-000000012"]


def test_metrics_that_cannot_be_written_end_all_ranks_with_the_reason(tmp_path, env, training):  # noqa: F811
    # 20 blocks hold the configuration and some logged steps, not all of them; nothing else is written before the end.
    rare = ["--set", "train.max_steps=300", "--set", "checkpoint.every=1000", "--set", "evaluation.every=1000"]
    command = [*TWO_ON_CPU, *training, *rare, "--set", "model.dim=8"]
    code, _, err = run(["sh", "-c", f"ulimit -f 20; exec {shlex.join(command)}"], env)
    assert code == 2, err
    [told] = err.splitlines()[1:]  # of the log, or of what TensorBoard reads, whichever is full first
    written = re.escape(str(tmp_path / "run")) + r"/(metrics\.jsonl|tensorboard/events[^/]*)"
    assert re.fullmatch(rf"error: {written}: cannot be written: File too large", told)


def test_a_run_directory_that_cannot_be_written_is_named(tmp_path, training):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")  # root may write wherever others may not
    (tmp_path / "run" / "config.yaml").write_text("# eupmim-dist")
    ended = eupmim(tmp_path, shlex.join([*training[1:], "--cpu"]))
    where = tmp_path / "run" / "checkpoints" / "step-000000006"
    assert (ended.code, ended.err) == (2, f"error: {where}: cannot be read or written on rank 0: Not a directory\n")
