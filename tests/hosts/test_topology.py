"""What crosses the link between two hosts, counted on their interfaces, is what is predicted."""

import json
import sys

import pytest

from tests.hosts.network import Network, needs_hosts
from tests.hosts.test_launch import Launch

pytestmark = needs_hosts


def link_bytes(hosts, place, port, rows):
    """By exchange: predicted, counted where they are sent, and by the interface."""
    shape = ["--rows", rows, "--samples", 512, "--steps", 5, "--optimizer", "sgd"]
    launches = []
    for number, host in enumerate(hosts):
        meet = ["--nproc", 2, "--threads", 1, "--nnodes", 2, "--node-rank", number, "--rdzv-endpoint", f"node0:{port}"]
        work = ["bench", "scaling", *shape, "--json", place / f"{rows}.json"]
        log = place / f"{rows}-{number}.log"
        launches.append(
            Launch(
                host,
                log,
                "EUPMIM_TIMEOUT_SECONDS=120",
                sys.executable,
                "-m",
                "eupmim_dist",
                "launch",
                *meet,
                "--",
                *work,
            )
        )
    assert [launch.ended() for launch in launches] == [0, 0], [launch.told for launch in launches]
    print(launches[0].told)
    ways = json.loads((place / f"{rows}.json").read_text())["measured"]["ways"]
    return {way: [one[f"{kind}link bytes"] for kind in ("predicted ", "", "interface ")] for way, one in ways.items()}


def test_bytes_on_the_link_are_those_predicted(tmp_path):
    """Of a large table most rows are wanted by one rank alone; of a small one all ranks want the same."""
    with Network(2) as hosts:
        large, small = (link_bytes(hosts, tmp_path, 29500 + i, rows) for i, rows in enumerate((200_000, 500)))
    for predicted, counted, by_interface in (*large.values(), *small.values()):
        assert counted == pytest.approx(predicted, rel=1e-12)
        assert by_interface == pytest.approx(predicted, rel=0.05)
    assert large["two_level"][2] < 0.9 * large["flat"][2]
    assert small["two_level"][2] < 0.6 * small["flat"][2]
