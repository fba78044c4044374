"""Which processors ranks keep to."""

import os

import pytest

from eupmim_dist.parallel import processors

AGENT = {"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}


@pytest.fixture
def machine(monkeypatch):
    """A rank with so many of its launcher's processors, in such an environment; gives those that it has then."""

    def start(parent, mine, rank, local_size, **environment):
        kept = set(mine)
        monkeypatch.setattr(processors, "_before", None)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(mine) if pid == 0 else set(parent), raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", lambda pid, some: (kept.clear(), kept.update(some)), raising=False)
        for name in (*processors.BINDINGS, *AGENT):
            monkeypatch.delenv(name, raising=False)
        for name, value in (AGENT | environment).items():
            if value:
                monkeypatch.setenv(name, value)
        for _ in range(2):  # a second call changes nothing
            processors.keep_to_one(rank, local_size)
        assert processors.available() == set(mine)
        assert processors.of_each_rank(local_size) == max(1, len(mine) // local_size)
        return kept

    return start


@pytest.mark.parametrize("number", [2, 3])
def test_as_many_ranks_as_processors_have_one_each(machine, number):
    every = range(number)
    assert [machine(every, every, rank, number) for rank in every] == [{rank} for rank in every]


@pytest.mark.parametrize(
    ("parent", "mine", "local_size", "environment"),
    [
        (range(5), range(5), 3, {}),  # the system has some to spare
        (range(2), range(2), 3, {}),
        (range(1), range(1), 1, {}),
        (range(8), [2, 3], 2, {}),  # somebody has bound it
        (range(2), range(2), 2, {"OMP_PROC_BIND": "false"}),
        (range(2), range(2), 2, {"OMP_NUM_THREADS": "2"}),
        (range(2), range(2), 2, {"OMP_NUM_THREADS": ""}),
        (range(2), range(2), 2, {"TORCHELASTIC_RUN_ID": ""}),  # nobody has counted the ranks of this node
    ],
)
def test_else_nothing_is_changed(machine, parent, mine, local_size, environment):
    assert machine(parent, mine, 1 % local_size, local_size, **environment) == set(mine)


def test_where_the_system_cannot_bind_nothing_is_done(monkeypatch):
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    for name, value in AGENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    processors.keep_to_one(1, 2)
    assert processors.available() == {0, 1}
