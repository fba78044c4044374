"""How ranks learn of each other's failures through the store: threads stand for them, or what they have left there."""

import json
import threading
import time

import pytest
import torch
import torch.distributed as dist

from eupmim_dist.errors import UserError
from eupmim_dist.parallel import agreement
from eupmim_dist.parallel.agreement import RankFailed
from eupmim_dist.parallel.patience import Deadline, in_time
from eupmim_dist.parallel.world import World

REGION = "eupmim/agreed/0"


class Counting:
    """A store that counts what it is asked."""

    def __init__(self):
        self._store, self.asked = dist.HashStore(), 0

    def __getattr__(self, name):
        def ask(*given):
            self.asked += 1
            return getattr(self._store, name)(*given)

        return ask


@pytest.fixture
def store(monkeypatch):
    store = Counting()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(agreement, "parted", threading.Event())
    return store


def world(rank, size):
    return World(rank, size, rank, size, torch.device("cpu"))


def meet(rank, size, error=None, patience=5.0):
    return agreement._meet(world(rank, size), [REGION], error, Deadline(patience))


def has_arrived(store, ranks, failed=()):
    """What ranks have left in the store that have been there."""
    outcome = {"reason": "no room", "mistake": False, "lost": False}
    for rank in failed:
        agreement._tell(store, REGION, {rank: outcome})
    for rank in ranks:
        store.append(f"{REGION}/present", f"{rank} ")
        store.add(f"{REGION}/arrived", 1)


@pytest.mark.parametrize("failed", [[], [0], [1, 2]])
def test_what_a_rank_asks_does_not_grow_with_the_ranks(store, failed):
    asked = []
    for size in (4, 400):
        store._store = dist.HashStore()
        has_arrived(store, range(size - 1), failed)
        before = store.asked
        failures, reporter = meet(size - 1, size)
        asked.append(store.asked - before)
        assert (sorted(failures), reporter) == (failed, min(failed, default=0))
    assert asked[0] == asked[1] < 12


def test_missing_ranks_are_told_once_and_to_those_that_come_late(store, monkeypatch):
    has_arrived(store, [0, 1])
    failures, reporter = meet(2, 5, patience=0.05)
    gone = "gave no answer for 0.05 s: it is gone or stuck"
    assert {rank: told["reason"] for rank, told in failures.items()} == {3: gone, 4: gone}
    assert reporter == 0
    monkeypatch.setattr(agreement, "GRACE_SECONDS", 0.05)
    late, reporter = meet(4, 5)
    assert (late, reporter) == (failures, 0)


def test_a_rank_that_is_gone_is_no_reason_where_another_has_one(store):
    lost = {"reason": "RuntimeError: closed by peer", "mistake": False, "lost": True}
    agreement._tell(store, REGION, {0: lost})
    has_arrived(store, [0, 1], failed=[1])
    failures, reporter = meet(2, 3, RuntimeError("Connection closed by peer"))
    assert (list(failures), failures[1]["reason"], reporter) == ([1], "no room", 1)


def test_a_reason_of_many_lines_and_signs_arrives_whole(store):
    reason = "rank\u2028two 'x' \"y\" [1, 2]\n \\ end"
    has_arrived(store, [0])
    failures, _ = meet(1, 2, UserError(reason))
    assert failures[1] == {"reason": " ".join(UserError(reason).as_typed.split()), "mistake": True, "lost": False}
    assert json.loads(store.get(f"{REGION}/failed"))[0] == 1


def come_late(monkeypatch, works):
    """What rank 0, which waits for 0.4 s, finds where rank 1 is at work for 1.2 s and says so or does not."""
    monkeypatch.setattr(agreement, "collective_timeout", lambda: 0.4)
    monkeypatch.setattr(agreement, "GRACE_SECONDS", 0.1)
    found = []

    def wait():
        found.append(in_time(deadline, 0.2, lambda: agreement._meet(world(0, 2), [REGION], None, deadline)))

    deadline = Deadline(0.4)
    waiting = threading.Thread(target=wait)
    waiting.start()
    say, until = agreement.at_work(world(1, 2)), time.monotonic() + 1.2
    while time.monotonic() < until:
        time.sleep(0.02)
        if works:
            say(1)
    found.append(meet(1, 2, patience=0.4))
    waiting.join()
    return found


def test_ranks_wait_for_one_that_is_at_work_for_longer_than_a_collective_may_take(store, monkeypatch):
    assert come_late(monkeypatch, works=True) == [({}, 0), ({}, 0)]


def test_and_not_for_one_that_says_nothing(store, monkeypatch):
    (failures, _), _ = come_late(monkeypatch, works=False)
    assert failures[1]["reason"] == "gave no answer for 0.4 s: it is gone or stuck"


def test_a_store_that_never_answers_is_given_up(monkeypatch, store):
    monkeypatch.setattr(agreement, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(agreement, "collective_timeout", lambda: 0.1)
    monkeypatch.setattr(agreement, "_meet", lambda *_: time.sleep(5))
    started = time.monotonic()
    with pytest.raises(RankFailed, match="rank 1: lost rank 0, or its launcher"), agreement.agreed(world(1, 2)):
        pass
    assert time.monotonic() - started < 2


def test_of_who_holds_the_store_the_others_can_still_read_it(monkeypatch, store):
    """Rank 0's process may, under deepspeed or srun: it does not leave at once."""
    monkeypatch.setattr(agreement, "STORE_SECONDS", 0.3)
    for held in (True, False):
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", str(not held))
        monkeypatch.setattr(agreement, "_meet", lambda *_: ({0: {"reason": "no", "mistake": True, "lost": False}}, 0))
        started = time.monotonic()
        with pytest.raises(UserError, match="no"), agreement.agreed(world(0, 2)):
            raise UserError("no")
        assert (time.monotonic() - started >= 0.3) == held
