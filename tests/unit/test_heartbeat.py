"""What a rank tells of itself while it works or is stuck, and when its thread ends it: on stores of this process."""

import json
import threading
import time

import pytest
import torch.distributed as dist

from eupmim_dist.parallel import heartbeat
from eupmim_dist.parallel.heartbeat import Heartbeat, described, give_up
from eupmim_dist.parallel.patience import Deadline, in_time

TIMEOUT, REGION = 0.2, "eupmim/agreed/3"


class Gone(dist.Store):
    def set(self, *_):
        raise dist.DistNetworkError("connection closed")


@pytest.fixture
def beating(monkeypatch, tmp_path):
    """Starts the heartbeat of rank 1, whose end is that of the thread alone, and is put on record."""
    made, ended = [], []

    def end(code):
        ended.append(code)
        made[0]._ended.set()

    monkeypatch.setattr(heartbeat.os, "_exit", end)
    monkeypatch.setattr(heartbeat, "LEAVING_SECONDS", 0.1)

    def begin(store, region=REGION, step=None):
        made.append(Heartbeat(store, 1, TIMEOUT))
        made[0].region, made[0].step, made[0].run_dir, made[0].ended = region, step, tmp_path / "run", ended
        made[0].start()
        return made[0]

    yield begin
    for each in made:
        each.stop()


def told(store):
    deadline = time.monotonic() + 5
    while not (found := described(store, [1], TIMEOUT)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found[1]


def test_a_rank_tells_its_step_and_place_while_its_thread_waits(beating):
    """The place is the innermost of this program."""
    store = dist.HashStore()
    free = threading.Event()

    def work():
        started.append(beating(store, step=1204))
        in_time(Deadline(10), 0, free.wait)

    started = []
    working = threading.Thread(target=work)
    working.start()
    time.sleep(1.2)
    line = told(store)
    free.set()
    working.join()
    assert line.startswith("; alive, in step 1204, at parallel/patience.py:")
    assert line.endswith(" (in_time), for 1 s")


def test_a_rank_that_tells_nothing_is_silent(monkeypatch):
    """By the time since ranks began: clocks of hosts may differ."""
    store = dist.HashStore()
    assert described(store, [0, 1], 600) == {}
    monkeypatch.setattr(heartbeat, "_begun", time.monotonic() - 1000)
    monkeypatch.setattr(heartbeat.time, "time", lambda: 0.0)
    store.set("eupmim/heartbeat/1", json.dumps([960.0, "in step 3, at a place, for 2 s"]))
    assert described(store, [0, 1], 600) == {1: "; silent for 40 s, last in step 3, at a place, for 2 s"}
    store.set("eupmim/heartbeat/1", json.dumps([991.0, "at a place, for 2 s"]))
    assert described(store, [0, 1], 600) == {1: "; alive, at a place, for 2 s"}


def test_a_rank_that_was_given_up_and_does_not_leave_is_ended(beating, capfd, tmp_path):
    store = dist.HashStore()
    mine = beating(store, step=7)
    give_up(store, [0, 1], REGION)
    mine._thread.join(5)
    assert mine.ended == [1]
    line = capfd.readouterr().err
    assert line.startswith(
        "error: rank 1: in step 7, at a place outside of this program, for 0 s; the others have given "
    )
    assert line.endswith(f"it up: ended; see {tmp_path}/run/stuck\n")
    assert "File" in (tmp_path / "run" / "stuck" / "rank-1.stacks.txt").read_text()
    assert "version" in json.loads((tmp_path / "run" / "stuck" / "rank-1.collectives.json").read_text())


@pytest.mark.parametrize(("given_up", "region"), [(None, REGION), (REGION, ""), (REGION, "eupmim/agreed/4")])
def test_a_rank_that_works_or_has_left_goes_on(beating, given_up, region):
    store = dist.HashStore()
    mine = beating(store, region)
    if given_up:
        give_up(store, [1], given_up)
    time.sleep(0.5)
    assert mine.ended == []
    assert mine._thread.is_alive()


def test_a_rank_that_leaves_in_time_is_not_ended(beating, monkeypatch):
    monkeypatch.setattr(heartbeat, "LEAVING_SECONDS", 0.4)
    store = dist.HashStore()
    mine = beating(store)
    give_up(store, [1], REGION)
    time.sleep(0.2)
    mine.region = ""  # it has heard of it
    time.sleep(0.4)
    assert mine.ended == []


@pytest.mark.parametrize(("region", "ended"), [(REGION, [1]), ("", [])])
def test_a_rank_does_not_outlive_the_store_by_more_than_a_collective_may_take(beating, region, ended, capfd):
    started = time.monotonic()
    mine = beating(Gone(), region)
    mine._thread.join(5 if ended else 0.6)
    assert mine.ended == ended
    assert time.monotonic() - started > TIMEOUT
    assert ("the others have been out of reach for 0 s: ended" in capfd.readouterr().err) == bool(ended)


def test_a_rank_that_makes_steps_goes_on_without_the_store(beating):
    mine = beating(Gone())
    for step in range(20):
        mine.step = step
        time.sleep(0.05)
    assert mine.ended == []
    mine._thread.join(5)
    assert mine.ended == [1]


def test_a_store_that_hangs_counts_as_gone(beating, monkeypatch):
    class Hangs(dist.Store):
        def set(self, *_):
            time.sleep(3)

    monkeypatch.setattr(heartbeat, "SECONDS", 0.05)
    mine = beating(Hangs())
    mine._thread.join(2)
    assert mine.ended == [1]


def test_traces_that_cannot_be_written_hold_up_nothing(beating, monkeypatch, tmp_path):
    mine = Heartbeat(dist.HashStore(), 1, TIMEOUT)
    (tmp_path / "file").touch()
    mine.run_dir = tmp_path / "file"
    assert mine.traces() == ""
    monkeypatch.setattr(heartbeat, "TRACES_SECONDS", 0.1)
    monkeypatch.setattr(Heartbeat, "_write_traces", lambda _: time.sleep(3))
    started = time.monotonic()
    assert mine.traces() == ""
    assert time.monotonic() - started < 2
