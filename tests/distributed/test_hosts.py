"""Ranks on several hosts: the interface they use, what they refuse at the start, and what a fault leads to."""

import json
import os
import socket
import time
from functools import partial

import pytest

from eupmim_dist import api
from eupmim_dist.parallel import network
from tests.distributed.spawn import Ranks, run_ranks
from tests.hosts.network import Network, needs_hosts
from tests.stores import small_store

pytestmark = needs_hosts


@pytest.fixture(scope="module")
def hosts():
    with Network(3) as hosts:
        yield hosts


def used():
    return os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"], network.described()


def test_each_host_uses_the_interface_that_routes_to_the_others(hosts):
    """Though a host's own name is a loopback's, and another interface comes first."""
    told = "node0 eth0 10.77.0.1 (rank 0 to 1), node1 eth0 10.77.0.2 (rank 2 to 3)"
    with Ranks(4, hosts=hosts[:2]) as ranks:
        assert ranks.run(used) == [("eth0", "=eth0", told)] * 4


@pytest.mark.parametrize("endpoint", ["10.77.0.1", "fd77::1"])
def test_a_host_that_knows_no_names_is_reached_by_its_address(endpoint):
    with Network(2, named=False) as hosts, Ranks(2, hosts=hosts, endpoint=endpoint) as ranks:
        assert [found[0] for found in ranks.run(used)] == ["eth0", "eth0"]


def test_hosts_of_ipv6_alone(hosts):
    for host in hosts[:2]:
        host.run("ip", "-4", "address", "flush", "dev", "eth0")
    try:
        with Ranks(2, hosts=hosts[:2], endpoint="fd77::1") as ranks:
            told = "node0 eth0 fd77::1 (rank 0), node1 eth0 fd77::2 (rank 1)"
            assert ranks.run(used) == [("eth0", "=eth0", told)] * 2
    finally:
        for number, host in enumerate(hosts[:2], 1):
            host.run("ip", "address", "add", f"10.77.0.{number}/24", "dev", "eth0")


def test_the_users_interface_wins(hosts):
    with Ranks(2, hosts=hosts[:2], env={"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "ib0"}) as ranks:
        assert [found[:2] for found in ranks.run(used)] == [("eth0", "ib0")] * 2


def test_hosts_that_do_not_reach_each_other_are_named(hosts):
    """Both reach the rendezvous."""
    hosts[1].run("ip", "route", "add", "unreachable", "10.77.0.3/32")
    started = time.monotonic()
    try:
        with pytest.raises(AssertionError) as failed, Ranks(3, hosts=hosts) as ranks:
            ranks.run(used)
    finally:
        hosts[1].run("ip", "route", "del", "unreachable", "10.77.0.3/32")
    assert time.monotonic() - started < 20
    for rank in range(3):
        told = str(failed.value).partition(f"rank {rank}: ")[2]
        assert "rank 1 on node1 (10.77.0.2, eth0) does not reach rank 2 on node2 (10.77.0.3, eth0)" in told
        assert "let all ports through" in told


def test_an_interface_that_is_not_there_is_named(hosts):
    with (
        pytest.raises(AssertionError, match=r"rank 0 on node0 has no such interface.* there are lo, a0, eth0"),
        Ranks(2, hosts=hosts[:2], env={"GLOO_SOCKET_IFNAME": "ib7"}) as ranks,
    ):
        ranks.run(used)


SETTINGS = ["model.dim=8", "model.dropout=0", "model.attention_dropout=0", "task.history_length=6", "train.log_every=1"]
SETTINGS += [
    "train.global_batch_size=8",
    "evaluation.every=100000",
    "evaluation.metric=recall@10",
    "checkpoint.every=10",
]


def train(store, run_dir, *settings, other=None):
    """What a training ends with: its last step, or what it is refused or ended with, and whether another tells it."""
    if other and socket.gethostname() == other[0]:
        store, settings = other[1] or store, [*settings, *other[2:]]
    try:
        fitted = api.fit(data=store, run_dir=run_dir, overrides=[*SETTINGS, *settings], cpu=True)
    except Exception as error:
        return type(error).__name__, str(error), getattr(error, "reported_elsewhere", False)
    return fitted.step


def losses(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("hosts") / "store", num_users=60, num_items=200).path


def test_hosts_train_as_one_does_and_refuse_to_differ(hosts, store, tmp_path):
    other = small_store(tmp_path / "other", num_users=60, num_items=200, seed=1).path
    with Ranks(4, hosts=hosts[:2]) as ranks:
        assert ranks.run(train, store, tmp_path / "two", "train.max_steps=20") == [20] * 4
        told = ranks.run(partial(train, other=("node1", None, "train.learning_rate=0.5")), store, tmp_path / "a")
        assert {error for _, error, _ in told[1:2]} == {
            "rank 2 on node1: train.learning_rate: 0.5 for rank 2 on node1, 0.001 for rank 0 on node0; "
            "start all hosts with the same configuration"
        }
        told = ranks.run(partial(train, other=("node1", other)), store, tmp_path / "b")
        assert "for rank 2 on node1" in told[0][1]
        assert "for rank 0 on node0; " in told[0][1]
        assert "must hold the same store on all hosts" in told[0][1]
    assert run_ranks(1, train, store, tmp_path / "one", "train.max_steps=20") == [20]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
