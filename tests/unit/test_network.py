"""What ranks find out about each other before they form a group: threads stand for them, with one store."""

import socket
import threading
from datetime import timedelta

import psutil
import pytest
import torch
import torch.distributed as dist

from eupmim_dist.errors import UserError
from eupmim_dist.parallel import network, world
from eupmim_dist.parallel.network import Place


def together(size, function, timeout=20.0):
    """What `function(board)` returns, or the message it raises, for each rank."""
    store, found = dist.HashStore(), [None] * size

    def run(rank):
        try:
            found[rank] = function(network._Board(store, rank, size, timedelta(seconds=timeout)))
        except UserError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def places(*addresses, gpus=()):
    gpus = gpus or [None] * len(addresses)
    return [
        Place(rank, f"node{address[-1]}", "eth0", address, gpu)
        for rank, (address, gpu) in enumerate(zip(addresses, gpus, strict=True))
    ]


TWO_HOSTS = places("127.0.0.1", "127.0.0.1", "127.0.0.2")


def test_hosts_that_fit_are_let_through():
    assert together(3, lambda board: network._check(board, TWO_HOSTS)) == [None] * 3


def test_another_version_is_refused_with_both_hosts(monkeypatch):
    other = {"torch": "2.12", "eupmim_dist": "1 (aa)"}
    versions = {0: {"torch": "2.13", "eupmim_dist": "1 (aa)"}, 2: other}

    def check(board):
        by_thread[threading.get_ident()] = board.rank
        network._check(board, TWO_HOSTS)

    by_thread = {}
    monkeypatch.setattr(network, "versions_here", lambda: versions[by_thread[threading.get_ident()]])
    told = "rank 2 on node2 (127.0.0.2, eth0) has torch 2.12, rank 0 on node1 (127.0.0.1, eth0) has 2.13: "
    assert together(3, check) == [told + "install the same on all hosts"] * 3


def test_hosts_have_the_same_versions_if_their_files_are_the_same(tmp_path, monkeypatch):
    ours = network.versions_here()
    assert ours["torch"] == torch.__version__
    monkeypatch.setattr(network.eupmim_dist, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "a.py").write_text("1")
    first = network.versions_here()
    (tmp_path / "a.py").write_text("2")
    assert len({each["eupmim_dist"] for each in (ours, first, network.versions_here())}) == 3


def test_two_ranks_with_one_gpu_are_refused():
    same = places("127.0.0.1", "127.0.0.1", gpus=["GPU-1", "GPU-1"])
    told = "rank 1 on node1 (127.0.0.1, eth0) and rank 0 on node1 (127.0.0.1, eth0) have the same GPU, GPU-1: start one"
    assert all(each.startswith(told) for each in together(2, lambda board: network._check(board, same)))
    own = places("127.0.0.1", "127.0.0.1", gpus=["GPU-1", "GPU-2"])
    assert together(2, lambda board: network._check(board, own)) == [None] * 2


def test_a_rank_that_does_not_come_is_named(capsys, monkeypatch):
    monkeypatch.setattr(network, "PATIENCE_SECONDS", 0)
    store = dist.HashStore()
    board = network._Board(store, 0, 3, timedelta(seconds=0.3))
    store.set("place/2", "{}")
    store.add("place/arrived", 1)
    with pytest.raises(UserError, match=r"rank 1 of 3 did not come within 0\.3 s; look at what it says there"):
        board.tell("place", lambda: None)
    assert capsys.readouterr().err == "warning: waiting for rank 1 of 3\n"


def test_a_mistake_of_one_rank_is_all_ranks(monkeypatch):
    def find(board):
        def fails():
            if board.rank == 1:
                raise UserError("no such interface")

        board.tell("place", fails)

    assert together(3, find) == ["no such interface"] * 3


def test_what_breaks_on_one_rank_is_told_on_all():
    def break_one(board):
        def find():
            if board.rank == 1:
                raise OSError("no buffer space available")

        board.tell("place", find)

    told = f"rank 1 on {socket.gethostname()}: OSError: no buffer space available"
    assert together(3, break_one) == [told] * 3


def test_the_interface_is_that_of_the_address(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    place = network._place(0, "127.0.0.1", None)
    assert ("127.0.0.1" in [each.address for each in psutil.net_if_addrs()[place.interface]], place.host) == (
        True,
        socket.gethostname(),
    )
    with pytest.raises(UserError, match=r"rank 3 on .*: no interface has the address 203\.0\.113\.7; set GLOO_SOCKET"):
        network._place(3, "203.0.113.7", None)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib7")
    with pytest.raises(UserError, match=r"GLOO_SOCKET_IFNAME=ib7: rank 3 on .* there are .*; unset it"):
        network._place(3, "127.0.0.1", None)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", place.interface)
    assert network._place(0, "203.0.113.7", None).address in ("127.0.0.1", "::1")


@pytest.mark.parametrize("name", ["localhost", "127.0.1.1", "::1"])
def test_a_host_routes_to_itself_over_the_loopback(name):
    assert network._route(name) == ("127.0.0.1", "127.0.0.1")


def test_hosts_are_described_and_ranks_named_with_them(monkeypatch):
    monkeypatch.setattr(network, "_joined", TWO_HOSTS)
    assert network.described() == "node1 eth0 127.0.0.1 (rank 0 to 1), node2 eth0 127.0.0.2 (rank 2)"
    assert network.named(2) == "rank 2 on node2"
    monkeypatch.setattr(network, "_joined", TWO_HOSTS[:2])
    assert network.named(1) == "rank 1"


@pytest.mark.parametrize(
    ("visible", "local_rank", "gpu"), [(1, 0, 0), (1, 3, 0), (8, 3, 3), (2, 3, None), (0, 0, None)]
)
def test_a_rank_takes_its_gpu_among_those_it_sees(monkeypatch, visible, local_rank, gpu):
    """All of the node's, or one of its own."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    if gpu is None:
        with pytest.raises(UserError, match=f"rank 11 needs GPU {local_rank} of its node, which has {visible}"):
            world._gpu(11, local_rank)
    else:
        assert world._gpu(11, local_rank) == gpu
