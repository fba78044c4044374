"""Checkpoints that were damaged, cut in two or written by another program: detected, never loaded, gone back on."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

from eupmim_dist.assemble import describe_end
from eupmim_dist.checkpoint import layout, load, manifest, run_dir
from eupmim_dist.checkpoint.layout import complete_steps, open_checkpoint
from eupmim_dist.checkpoint.load import load_model, load_training, open_sound
from eupmim_dist.checkpoint.manifest import Damaged
from eupmim_dist.checkpoint.pieces import Piece
from eupmim_dist.checkpoint.run_dir import find_start, forget_lost_best, write_config
from eupmim_dist.errors import UserError
from eupmim_dist.training import evaluate_best
from tests.runs import WORLD, config_of, start, train_in

pytestmark = pytest.mark.usefixtures("one_thread")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path, checkpoint__every=3, checkpoint__keep=3)
    whole = train_in(config, tmp_path / "whole")
    files = [path.name for path in complete_steps(tmp_path / "whole")[-1].iterdir()]
    assert len(files) == 2
    for file, harm in product(files, (cut, flip, Path.unlink)):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        before, last = complete_steps(tmp_path / "run")[-2:]
        harm(last / file)
        capsys.readouterr()
        begun = find_start(tmp_path / "run", "auto", config, WORLD)
        assert begun.checkpoint is not None, (file, harm)
        assert begun.checkpoint.path == before, (file, harm)
        warned = capsys.readouterr().err
        assert warned.startswith(f"warning: {last}"), (file, harm)
        assert warned.endswith("going back to the one before it\n"), (file, harm)
        with pytest.raises(UserError):
            open_sound(partial(open_checkpoint, last), WORLD)
        again = train_in(config, tmp_path / "run")
        assert torch.equal(again.tables.shards["item"].weight, whole.tables.shards["item"].weight)
        assert open_sound(partial(open_checkpoint, last), WORLD).step == 12


def test_a_best_one_that_was_lost_is_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path)
    best = train_in(config, tmp_path / "run").progress.best_step
    assert best is not None
    assert best != 12
    shutil.rmtree(layout.step_dir(tmp_path / "run", best))
    run = start(config)
    begun = find_start(tmp_path / "run", "auto", config, WORLD)
    assert begun.checkpoint is not None
    load_training(run, begun.checkpoint)
    capsys.readouterr()
    forget_lost_best(run, tmp_path / "run")
    assert (run.progress.best_step, run.progress.best_value) == (None, None)
    assert "the best so far is forgotten" in capsys.readouterr().err
    assert describe_end(run) == ["ended after step 12", "tested is the last, since no best one is known"]
    assert evaluate_best(run, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["step"] == 12


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    run = train_in(config, tmp_path / "run")
    opened = layout.resolve(tmp_path / "run")
    read_pieces = load.read_pieces

    def then_deleted(path: Path) -> dict[str, list[Piece]]:
        found = read_pieces(path)
        shutil.rmtree(path)
        return found

    monkeypatch.setattr(load, "read_pieces", then_deleted)
    told = f"^{opened.path}: is gone; use another checkpoint$"
    with pytest.raises(Damaged, match=told):
        load_model(run, opened)
    monkeypatch.undo()
    for read in (partial(load_model, run), lambda found: open_sound(lambda: found, WORLD)):
        with pytest.raises(Damaged, match=told):
            read(opened)


def test_saves_that_fail_to_clean_up_are_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(39, "Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", busy)
    config = config_of(tmp_path, checkpoint__keep=1, checkpoint__every=2)
    run = train_in(config, tmp_path / "run")
    kept = [path.name for path in complete_steps(tmp_path / "run")]
    assert kept == [f"step-{run.progress.best_step:09d}", "step-000000012"]


def test_with_no_sound_checkpoint_left_nothing_is_trained_over(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    train_in(config, tmp_path / "run")
    for path in complete_steps(tmp_path / "run"):
        flip(path / "manifest.json")
    with pytest.raises(UserError, match="none of its checkpoints is sound"):
        find_start(tmp_path / "run", "auto", config, WORLD)


def test_a_checkpoint_of_a_newer_program_is_not_gone_back_on(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    train_in(config, tmp_path / "run")
    [last] = [path for path in complete_steps(tmp_path / "run") if path.name.endswith("12")]
    content = json.loads((last / "manifest.json").read_text())
    del content["checksum"]
    files = content.pop("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "FORMAT_VERSION", 99)
        del content["format_version"]
        manifest.write_manifest(last, "manifest.json", content, files)
    with pytest.raises(UserError, match="format version 99, this program reads 5; update eupmim-dist"):
        find_start(tmp_path / "run", "auto", config, WORLD)


def test_a_replacement_that_was_cut_in_two_is_undone(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    train_in(config, tmp_path / "run")
    last = complete_steps(tmp_path / "run")[-1]
    last.rename(last.with_name(f".{last.name}.replaced"))
    begun = find_start(tmp_path / "run", "auto", config, WORLD)
    assert begun.checkpoint is not None
    assert begun.checkpoint.path == last


def test_a_file_that_cannot_be_read_or_does_not_belong_is_not_gone_back_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    train_in(config, tmp_path / "run")
    last = complete_steps(tmp_path / "run")[-1]
    with monkeypatch.context() as patch:

        def stale(path: Path, *_: object) -> str:
            raise OSError(116, "Stale file handle", str(path))

        patch.setattr(layout, "sha256", stale)
        with pytest.raises(UserError, match=r"cannot be read .Stale file handle.; try again, or move .* away"):
            find_start(tmp_path / "run", "auto", config, WORLD)
    (last / "copy.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"copy.safetensors: is no file of this checkpoint; move it away"):
        find_start(tmp_path / "run", "auto", config, WORLD)


def test_copies_under_other_names_are_neither_counted_nor_removed(tmp_path: Path) -> None:
    config = config_of(tmp_path, checkpoint__keep=1, checkpoint__every=2)
    train_in(config_of(tmp_path, train__max_steps=6, checkpoint__keep=1, checkpoint__every=2), tmp_path / "run")
    last = complete_steps(tmp_path / "run")[-1]
    copy = last.with_name(f"{last.name}.keep")
    shutil.copytree(last, copy)
    train_in(config, tmp_path / "run")
    assert (copy / "manifest.json").is_file()
    assert copy not in complete_steps(tmp_path / "run")


def test_going_back_within_a_run_is_refused_while_later_ones_are_there(tmp_path: Path) -> None:
    config = config_of(tmp_path, checkpoint__every=3, checkpoint__keep=3)
    train_in(config, tmp_path / "run")
    *_, before, last = complete_steps(tmp_path / "run")
    with pytest.raises(UserError, match=f"goes on to {last.name}, which resume .* would go back on"):
        find_start(tmp_path / "run", str(before), config, WORLD)
    assert find_start(tmp_path / "other", str(before), config, WORLD).checkpoint is not None
    assert find_start(tmp_path / "run", str(last), config, WORLD).checkpoint is not None


def test_a_run_whose_configuration_was_cut_is_still_a_run(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    train_in(config, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("")
    assert find_start(tmp_path / "run", "auto", config, WORLD).checkpoint is not None


OCCUPY = """
import sys, time
from pathlib import Path
from eupmim_dist.checkpoint.run_dir import _occupy
_occupy(Path(sys.argv[1]))
print("there", flush=True)
time.sleep(60)
"""


def test_a_second_training_is_kept_out_of_a_run_until_the_first_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = tmp_path / "run", config_of(tmp_path)
    run.mkdir()
    with subprocess.Popen([sys.executable, "-c", OCCUPY, str(run)], stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == b"there\n"
            monkeypatch.setattr(run_dir, "LOCK_SECONDS", 0.2)
            with pytest.raises(UserError, match=f"a training is running in it .process {first.pid} on "):
                write_config(run, config)
        finally:
            first.kill()
    write_config(run, config)
    monkeypatch.chdir(tmp_path)
    write_config(Path("run"), config)  # again, by another name
    assert (run / ".lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_that_cannot_lock_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    for _ in range(2):
        write_config(tmp_path / "run", config_of(tmp_path))
    assert (tmp_path / "run" / "config.yaml").exists()


def test_another_precision_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path)
    train_in(config, tmp_path / "run")
    begun = find_start(tmp_path / "run", "auto", config, WORLD)
    assert begun.checkpoint is not None
    run = start(config)
    capsys.readouterr()
    load_training(run, begun.checkpoint)
    assert capsys.readouterr().err == ""
    load_training(
        run,
        replace(begun.checkpoint, manifest=begun.checkpoint.manifest.model_copy(update={"mixed_precision": "bf16"})),
    )
    assert "was trained with mixed precision bf16 and goes on with no: not the same" in capsys.readouterr().err
