"""Ranks on several hosts: the interface they use, what they refuse at the start, and what a fault leads to."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from eupmim_dist import api
from eupmim_dist.errors import UserError
from eupmim_dist.parallel import network
from eupmim_dist.parallel.agreement import agreed
from eupmim_dist.parallel.world import init_world
from tests.distributed.spawn import Ranks, run_ranks
from tests.hosts.network import Host, Network, needs_hosts, wait_until
from tests.stores import small_store

pytestmark = needs_hosts


@pytest.fixture(scope="module")
def hosts():
    with Network(3) as hosts:
        yield hosts


def used():
    return os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"], network.described()


def test_each_host_uses_the_interface_that_routes_to_the_others(hosts):
    """Though a name is its own host's loopback, and another network comes first."""
    told = "node0 eth0 10.77.0.1 (rank 0 to 1), node1 eth0 10.77.0.2 (rank 2 to 3)"
    with Ranks(4, hosts=hosts[:2]) as ranks:
        assert ranks.run(used) == [("eth0", "=eth0", told)] * 4
