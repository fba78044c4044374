"""Which processors ranks keep to."""

import os

import pytest

from eupmim_dist.parallel import processors


@pytest.fixture
def machine(monkeypatch):
    """A process with so many of the processors of the one that started it; tells which it kept."""
    kept = {}

    def give(parent, mine):
        kept["mine"] = set(mine)
        masks = {os.getppid(): set(parent)}
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: masks.get(pid, kept["mine"]), raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", lambda pid, some: kept.update(mine=set(some)), raising=False)
        for name in processors.BINDINGS:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        return kept

    return give


@pytest.mark.parametrize(
    ("number", "ranks", "shares"),
    [
        (2, 2, [{0}, {1}]),
        (3, 3, [{0}, {1}, {2}]),
        (5, 3, [set(range(5))] * 3),
        (1, 1, [{0}]),
        (6, 3, [set(range(6))] * 3),  # the system has some to spare
        (2, 3, [{0, 1}] * 3),  # too few: the system shares them out
    ],
)
def test_each_rank_keeps_to_its_part(machine, number, ranks, shares):
    for rank, share in enumerate(shares):
        kept = machine(range(number), range(number))
        for _ in range(2):  # a second call changes nothing
            processors.keep_to_share(rank, ranks)
            assert kept["mine"] == share
            own = len(share) if len(share) < number else max(1, number // ranks)
            assert processors.of_each_rank(ranks) == own


def test_what_a_launcher_or_the_user_has_bound_stays(machine, monkeypatch):
    kept = machine(range(8), [2, 3])  # as srun does
    processors.keep_to_share(1, 2)
    assert (kept["mine"], processors.of_each_rank(2), processors.of_node(2)) == ({2, 3}, 2, 4)
    kept = machine(range(2), range(2))
    monkeypatch.setenv("OMP_PROC_BIND", "false")
    processors.keep_to_share(1, 2)
    assert (kept["mine"], processors.of_each_rank(2), processors.of_node(2)) == ({0, 1}, 1, 2)


def test_ranks_of_several_threads_or_beyond_those_counted_are_left_alone(machine, monkeypatch):
    kept = machine(range(2), range(2))
    processors.keep_to_share(2, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    processors.keep_to_share(1, 2)
    assert kept["mine"] == {0, 1}


def test_where_the_system_cannot_bind_nothing_is_done(monkeypatch):
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    processors.keep_to_share(1, 2)
    assert processors.of_each_rank(2) == 2
