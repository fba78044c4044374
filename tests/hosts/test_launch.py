"""The documented commands on several hosts, as they are typed, and what a fault leads to there; `make hosts-test`."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.distributed.spawn import Ranks
from tests.distributed.test_hosts import losses, train
from tests.hosts.network import Network, needs_hosts, slow_network, wait_until
from tests.stores import small_store

pytestmark = needs_hosts

LOST = "lost rank 0 on node0, or its launcher, through which ranks agree: gone, stuck, or cut off"
LATE = r"(took no part in a collective for \d+ s, and )?gave no answer for 3 s: it is gone or stuck"

ROOT = Path(__file__).parents[2]
SETTINGS = ["model.dim=8", "model.dropout=0", "model.attention_dropout=0", "task.history_length=6", "train.log_every=1"]
SETTINGS += [
    "train.global_batch_size=12",
    "evaluation.every=100000",
    "checkpoint.every=10",
    "evaluation.metric=recall@10",
]


@pytest.fixture(scope="module")
def hosts():
    with Network(3) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("hosts")
    small_store(place / "store", num_users=60, num_items=200)
    return place


def training(place, run, steps):
    options = [f"data.dir={place / 'store'}", f"train.max_steps={steps}", *SETTINGS]
    return [
        "train",
        *(word for each in options for word in ("--set", each)),
        "--baseline",
        "none",
        "--run-dir",
        place / run,
    ]


class Launch:
    """A command on a host, with its output in a file; `words` may set variables first."""

    def __init__(self, host, log, *words):
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {
            **os.environ,
            "PATH": programs,
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(log.parent),
            "OMP_NUM_THREADS": "1",
        }
        env |= {"CUDA_VISIBLE_DEVICES": "", "EUPMIM_TIMEOUT_SECONDS": "10"}
        self.log = log
        command = ["env", *words]
        with log.open("w") as out:
            self.process = subprocess.Popen(
                host.command(command) if host else list(map(str, command)),
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def told(self):
        return self.log.read_text()

    def ended(self, seconds=240):
        return self.process.wait(seconds)


def node(hosts, number, place, run, steps, port=29500):
    """`eupmim-dist launch` of a training on one of the hosts, one rank."""
    launch = command(hosts, number, training(place, run, steps), port)
    return Launch(hosts[number], place / f"{run}-{number}.log", *launch)


def command(hosts, number, subcommand, port=29500):
    meet = ["--nproc", 1, "--nnodes", len(hosts), "--node-rank", number, "--rdzv-endpoint", f"node0:{port}"]
    return [sys.executable, "-m", "eupmim_dist", "launch", *meet, "--", *subcommand]


@pytest.fixture(scope="module")
def alone(place):
    """Losses of one process on one host."""
    launch = Launch(None, place / "alone.log", sys.executable, "-m", "eupmim_dist", *training(place, "alone", 20))
    assert launch.ended() == 0, launch.told
    return losses(place / "alone")


def test_two_hosts_by_accelerate_as_its_script_says(hosts, place, alone):
    """With two levels: rows of items go from host to host by them, and sums of the gradients of users, all of whose
    rows all ranks hold."""
    sharded = ["--set", "tables.replicate_below=100", "--set", "tables.exchange=two_level"]
    launches = [
        Launch(
            host,
            place / f"script-{number}.log",
            *["RANKS=2", "NODES=2", f"NODE_RANK={number}", "ENDPOINT=node0:29500", "launch/accelerate_nodes.sh"],
            *training(place, "script", 20),
            *sharded,
        )
        for number, host in enumerate(hosts[:2])
    ]
    assert [launch.ended() for launch in launches] == [0, 0], [launch.told for launch in launches]
    assert "network node0 eth0 10.77.0.1 (rank 0 to 1), node1 eth0 10.77.0.2 (rank 2 to 3)\n" in launches[0].told
    assert "exchange two_level: 2 nodes of 2 ranks\n" in launches[0].told
    assert losses(place / "script") == pytest.approx(alone, rel=1e-5)


def test_three_hosts_of_which_the_first_comes_late(hosts, place, alone):
    launches = [node(hosts, number, place, "three", 20) for number in (1, 2)]
    told = "waiting for node0:29500: Connection refused; is node 0 started, with this endpoint?"
    wait_until(lambda: all(told in launch.told for launch in launches), 60, "the others wait")
    launches.append(node(hosts, 0, place, "three", 20))
    assert [launch.ended() for launch in launches] == [0, 0, 0], [launch.told for launch in launches]
    assert losses(place / "three") == pytest.approx(alone, rel=1e-5)


def test_doctor_tells_of_a_run_directory_that_is_not_shared_and_of_an_interface_that_leads_nowhere(hosts, place):
    (place / "shared").mkdir()
    hosts[1].run("mount", "-t", "tmpfs", "tmpfs", place / "shared")
    doctor = ["doctor", "--set", f"data.dir={place / 'store'}", "--run-dir", place / "shared" / "run"]
    launches = [
        Launch(host, place / f"doctor-{number}.log", *command(hosts[:2], number, doctor))
        for number, host in enumerate(hosts[:2])
    ]
    assert [launch.ended() for launch in launches] == [2, 2], [launch.told for launch in launches]
    told = " ".join(launches[0].told.split())
    assert "what rank 0 on node0 writes is not seen by rank 1 on node1" in told
    assert "node0 eth0 10.77.0.1 (rank 0), node1 eth0 10.77.0.2 (rank 1)" in told
    assert ", 1 FAIL" in told
    wrong = ["env", "GLOO_SOCKET_IFNAME=a0"]
    launches = [
        Launch(
            host, place / f"interface-{number}.log", *(wrong if number else []), *command(hosts[:2], number, doctor[:1])
        )
        for number, host in enumerate(hosts[:2])
    ]
    assert [launch.ended() for launch in launches] == [2, 2], [launch.told for launch in launches]
    told = " ".join(launches[0].told.split())
    assert "network FAIL rank 0 on node0 (10.77.0.1, eth0) does not reach rank 1 on node1 (10.66.0.2, a0)" in told
    assert "clocks PASS" in told


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="a slow link needs /dev/net/tun")
def test_a_slow_link_changes_no_result(place, alone):
    with slow_network(megabits=5) as hosts:
        sharded = ["--set", "tables.replicate_below=0"]
        launches = [
            Launch(
                host, place / f"slow-{number}.log", *command(hosts, number, [*training(place, "slow", 20), *sharded])
            )
            for number, host in enumerate(hosts)
        ]
        assert [launch.ended() for launch in launches] == [0, 0], [launch.told for launch in launches]
    assert losses(place / "slow") == pytest.approx(alone, rel=1e-5)


def test_a_wrong_port_is_told(place):
    with Network(2) as hosts:
        first = node(hosts, 0, place, "port", 20)
        other = node(hosts, 1, place, "port", 20, port=29501)
        wait_until(lambda: "waiting for node0:29501: Connection refused" in other.told, 60, "the mistake is told")
        assert first.process.poll() is None


def test_a_cut_link_ends_all_and_the_same_commands_go_on(place):
    log = place / "cut" / "metrics.jsonl"
    with Network(2) as hosts:
        launches = [node(hosts, number, place, "cut", 1_000_000) for number in (0, 1)]
        wait_until(lambda: log.exists() and log.read_text().count("\n") > 14, 120, "steps are logged")
        hosts[1].cut()
        assert [launch.ended(60) for launch in launches] == [1, 1], [launch.told for launch in launches]
        assert re.search(f"error: RankFailed: rank 1 on node1: {LATE}", launches[0].told)
        assert f"rank 1 on node1: {LOST}" in launches[1].told
        hosts[1].mend()
        last = max(losses(place / "cut"))
        launches = [node(hosts, number, place, "cut", last + 2) for number in (0, 1)]
        assert [launch.ended() for launch in launches] == [0, 0], [launch.told for launch in launches]
        assert "going on from" in launches[0].told


def train_through(ranks, fault, store, run_dir):
    """What the ranks of an endless training end with after `fault`, which comes in the middle of it."""
    log = run_dir / "metrics.jsonl"

    def strike():
        wait_until(lambda: log.exists() and log.read_text().count("\n") > 14, 150, "steps are logged")
        fault()

    striking = threading.Thread(target=strike)
    striking.start()
    try:
        return ranks.run(train, store, run_dir, "train.max_steps=1000000", timeout=200)
    finally:
        striking.join()


def test_a_frozen_rank_ends_the_others(hosts, place, tmp_path):
    with Ranks(4, hosts=hosts[:2], collective_timeout=5) as ranks:

        def freeze():
            os.kill(ranks.processes[3].pid, signal.SIGSTOP)
            threading.Timer(15, os.kill, (ranks.processes[3].pid, signal.SIGCONT)).start()  # to hear what it says

        told = train_through(ranks, freeze, place / "store", tmp_path / "run")
    assert all(re.match(f"rank 3 on node1: {LATE}; silent for ", reason) for _, reason, _ in told[:3])
    assert [silent for _, _, silent in told].count(False) == 1
