"""Log lines, recorded metrics, throughput and progress."""

import io
import json
import logging
import math
import os
import re
import sys
import time
from contextlib import suppress

import pytest
import torch
from rich.console import Console
from rich.file_proxy import FileProxy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from eupmim_dist.errors import UserError
from eupmim_dist.telemetry import progress as progress_module
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.metrics import MetricsWriter
from eupmim_dist.telemetry.progress import StepProgress, task_progress
from eupmim_dist.telemetry.throughput import Throughput, Window


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def read(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_only_rank_0_prints_and_text_is_left_alone(capsys):
    get_logger(0).info("[bold] 20 % of /a/rather/long/path/" + "x" * 100)
    get_logger(0).warning("careful")
    get_logger(1).info("nothing")
    out, err = capsys.readouterr()
    assert out == "[bold] 20 % of /a/rather/long/path/" + "x" * 100 + "\n"
    assert err == "warning: careful\n"


def test_the_log_is_an_ordinary_logger(capsys, monkeypatch):
    log = get_logger(0)
    assert log is logging.getLogger("eupmim_dist")
    kept = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: kept.append(record.getMessage()))
    with monkeypatch.context() as patch:
        patch.setattr(log, "handlers", [handler])
        get_logger(0).info("to %s", "a notebook")
        get_logger(1).warning("nothing")
    level = log.level
    log.setLevel(logging.ERROR)
    get_logger(0).warning("nothing")
    log.setLevel(level)
    get_logger(0).info("here again")
    assert kept == ["to a notebook"]
    assert capsys.readouterr() == ("here again\n", "")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_live_progress_line_gets_what_goes_to_the_terminal_and_no_more(monkeypatch, terminal):
    class Stream(io.StringIO):
        def isatty(self):
            return terminal

    stderr, live = Stream(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", FileProxy(Console(file=live, soft_wrap=True, markup=False), stderr))
    get_logger(0).warning("[bold] " + "x" * 200)
    told = "warning: [bold] " + "x" * 200 + "\n"
    assert (live.getvalue(), stderr.getvalue()) == ((told, "") if terminal else ("", told))


def test_metrics_go_to_both_places(tmp_path):
    with MetricsWriter(tmp_path, enabled=True) as metrics:
        metrics.log(10, {"loss": torch.tensor(0.5), "loss/adjacency": 0.25, "users": 7})
        line = read(tmp_path)[0]  # there before the file is closed
    assert line.pop("time") > 1e9
    assert line == {"step": 10, "loss": 0.5, "loss/adjacency": 0.25, "users": 7}
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(board.Tags()["scalars"]) == {"train/loss", "train/loss/adjacency", "users"}
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(10, 0.5)]


def test_a_number_that_is_not_finite_leaves_valid_json(tmp_path):
    with MetricsWriter(tmp_path, enabled=True) as metrics:
        metrics.log(1, {"loss": math.nan, "norm": math.inf})
    assert read(tmp_path)[0]["loss"] is None
    assert read(tmp_path)[0]["norm"] is None


def test_a_resumed_run_has_each_step_once(tmp_path):
    with MetricsWriter(tmp_path, enabled=True) as metrics:
        for step in range(0, 50, 10):
            metrics.log(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')  # the crash
    with MetricsWriter(tmp_path, enabled=True, resume_step=20) as metrics:
        metrics.log(30, {"loss": 0.0})
    assert [line["step"] for line in read(tmp_path)] == [0, 10, 20, 30]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [
        (0, 0),
        (10, 10),
        (20, 20),
        (30, 0),
    ]


def test_a_new_run_drops_the_old_lines(tmp_path):
    for loss in (1.0, 2.0):
        with MetricsWriter(tmp_path, enabled=True) as metrics:
            metrics.log(0, {"loss": loss})
    assert [line["loss"] for line in read(tmp_path)] == [2.0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("place", ["metrics.jsonl", "tensorboard/events.*"])
def test_a_full_disk_is_a_mistake_that_names_the_file(tmp_path, capfd, place):
    def log_on_a_full_disk():
        with MetricsWriter(tmp_path, enabled=True) as metrics:
            file = metrics._lines if place == "metrics.jsonl" else metrics._board._file
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, file.fileno())
            os.close(full)
            metrics.log(1, {"loss": 1.0})

    with pytest.raises(UserError, match=r"cannot be written: No space left on device") as told:
        log_on_a_full_disk()
    [path] = tmp_path.glob(place)
    assert str(told.value).startswith(f"{path}: ")
    assert capfd.readouterr().err == ""


def test_other_ranks_write_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run", enabled=False) as metrics:
        metrics.log(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_throughput_leaves_pauses_out_and_starts_anew():
    clock = Clock()
    throughput = Throughput(clock)
    assert throughput.window().rate == 0.0
    throughput.add(100)
    clock.now += 2
    with throughput.pause() as pause:
        clock.now += 50
    assert pause.seconds == 50
    throughput.add(100)
    clock.now += 2
    assert throughput.untold() == 4
    clock.now += 1
    assert throughput.window() == Window(5.0, 200)
    assert throughput.untold() == 1
    clock.now += 4
    throughput.add(100)
    assert throughput.window().rate == pytest.approx(25)


@pytest.mark.parametrize("terminal", [False, True])
def test_every_line_of_the_log_is_there_on_a_terminal_too(monkeypatch, capsys, terminal):
    if terminal:
        screen = Console(file=io.StringIO(), force_terminal=True, width=80)
        monkeypatch.setattr(progress_module, "console", lambda: screen)
    monkeypatch.setattr(progress_module.time, "strftime", lambda form: "12:34:56")
    clock = Clock()
    with StepProgress(100, first_step=20, clock=clock) as progress:
        for step in (30, 31, 60, 61, 100):
            clock.now = step - 20
            progress.update(step, loss=1.5, samples_per_second=1234.5)
    told = capsys.readouterr().out + (screen.file.getvalue() if terminal else "")
    assert re.findall(r"12:34:56.*", told) == [
        "12:34:56  step 30/100  loss 1.5000  1,234 samples/s  0:01:10 left",
        "12:34:56  step 31/100  loss 1.5000  1,234 samples/s  0:01:09 left",
        "12:34:56  step 60/100  loss 1.5000  1,234 samples/s  0:00:40 left",
        "12:34:56  step 61/100  loss 1.5000  1,234 samples/s  0:00:39 left",
        "12:34:56  step 100/100  loss 1.5000  1,234 samples/s  0:00:00 left",
    ]


def test_lines_of_long_trainings_fit_80_columns(capsys):
    clock = Clock()
    with StepProgress(999_999, clock=clock) as progress:
        clock.now = 200_000.0  # 55 hours
        progress.update(400_000, loss=123.45678, samples_per_second=1e6)
    [line] = capsys.readouterr().out.splitlines()
    assert line.endswith("83:20:00 left")
    assert len(line) <= 80


def test_progress_is_silent_on_other_ranks(capsys):
    with StepProgress(10, is_main=False) as progress:
        progress.tick(10)
        progress.update(10, loss=1.0, samples_per_second=1.0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("total", "share"), [(4, ", 25 %"), (None, "")])
def test_a_long_stage_says_so_now_and_then_and_a_quick_one_nothing(monkeypatch, capsys, total, share):
    with task_progress("quick", total) as advance:
        advance(1)
    monkeypatch.setattr(progress_module, "QUICK_SECONDS", 0.01)
    with task_progress("of another rank", total, is_main=False):
        time.sleep(0.05)
    assert capsys.readouterr().out == ""
    with suppress(KeyboardInterrupt), task_progress("inverting", total) as advance:
        advance(1)
        time.sleep(0.2)  # lines after 0.01, 0.03, 0.07, 0.15
        raise KeyboardInterrupt
    lines = capsys.readouterr().out.splitlines()
    assert 2 <= len(lines) <= 4
    assert set(lines) == {f"inverting{share}, 0 s so far"}
    time.sleep(0.2)
    assert capsys.readouterr().out == ""


def test_a_stage_is_a_bar_on_a_terminal(monkeypatch, capsys):
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(progress_module, "console", lambda: screen)
    monkeypatch.setattr(progress_module, "QUICK_SECONDS", 0.01)
    with task_progress("inverting"):
        time.sleep(0.15)
    shown = screen.file.getvalue()
    assert "inverting" in shown
    assert "0:00:00" in shown
    assert capsys.readouterr().out == ""


def test_slow_steps_give_a_sign_of_life_between_two_lines_of_the_log(capsys):
    clock = Clock()
    with StepProgress(100, first_step=10, clock=clock) as progress:
        for step in range(11, 16):
            clock.now += 15.0
            progress.tick(step)
        progress.update(15, 0.5, 3.0)
        progress.tick(16)
    lines = capsys.readouterr().out.splitlines()
    assert [line[10:] for line in lines[:2]] == ["step 12/100  0:22:00 left", "step 14/100  0:21:30 left"]
    assert lines[2][10:].startswith("step 15/100  loss 0.5000")
    assert len(lines) == 3
