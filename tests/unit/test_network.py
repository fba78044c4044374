"""What ranks find out about each other before they form a group: threads stand for them, with one store."""

import socket
import threading
import time
from datetime import timedelta
from types import SimpleNamespace

import psutil
import pytest
import torch
import torch.distributed as dist

from eupmim_dist.errors import UserError
from eupmim_dist.parallel import board, network, world
from eupmim_dist.parallel.board import Board
from eupmim_dist.parallel.network import Place


def together(size, function, timeout=20.0, store=None):
    """What `function(board)` returns, or the message it raises, for each rank."""
    store, found = store or dist.HashStore(), [None] * size

    def run(rank):
        try:
            found[rank] = function(Board(store, rank, size, timedelta(seconds=timeout)))
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
        Place(rank, f"node{address[-1]}", "eth0", address, gpu, address not in addresses[:rank])
        for rank, (address, gpu) in enumerate(zip(addresses, gpus, strict=True))
    ]


TWO_HOSTS = places("127.0.0.1", "127.0.0.1", "127.0.0.2")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(board, "STORE_SECONDS", 0.05)


def fitting(of_ranks):
    """What the ranks that are there find out together."""
    return together(len(of_ranks), lambda board: network._fitting(board, lambda: of_ranks[board.rank]))


def test_hosts_that_fit_are_let_through():
    assert fitting(TWO_HOSTS) == [TWO_HOSTS] * 3


def test_more_hosts_than_a_socket_has_places_in_line_try_each_other():
    """A door that lets nobody in is full after some."""
    with network._Door("127.0.0.1") as door:
        here = TWO_HOSTS[0]
        for _ in range(3 * door.request_queue_size):
            network._reach(here, here, door.server_address[1])
        door.shutdown()


def test_another_version_is_refused_with_both_hosts(monkeypatch):
    other = {"torch": "2.12", "eupmim_dist": "1 (aa)"}
    versions = {0: {"torch": "2.13", "eupmim_dist": "1 (aa)"}, 2: other}

    def check(board):
        by_thread[threading.get_ident()] = board.rank
        network._fitting(board, lambda: TWO_HOSTS[board.rank])

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
    assert all(each.startswith(told) for each in fitting(same))
    own = places("127.0.0.1", "127.0.0.1", gpus=["GPU-1", "GPU-2"])
    assert fitting(own) == [own] * 2


def nothing(_):
    return None


def test_a_rank_that_does_not_come_is_named(capsys, monkeypatch):
    monkeypatch.setattr(board, "PATIENCE_SECONDS", 0)
    store = dist.HashStore()
    main = Board(store, 0, 3, timedelta(seconds=0.3))
    store.set("place/2", "{}")
    store.add("place/arrived", 1)
    with pytest.raises(UserError, match=r"rank 1 of 3 did not come within 0\.3 s; look at what it says there"):
        main.tell("place", lambda: None, nothing)
    assert capsys.readouterr().err == "warning: waiting for rank 1 of 3\n"


@pytest.mark.parametrize("missing", [0, 1])
def test_whichever_rank_of_a_host_is_missing_another_one_tells_it(missing):
    """Also the first one."""
    store, told = dist.HashStore(), []

    def come(rank):
        with pytest.raises(UserError, match=f"rank {missing} of 4 did not come") as error:
            Board(store, rank, 4, timedelta(seconds=0.2)).tell("place", lambda: None, nothing)
        if not error.value.reported_elsewhere:
            told.append(rank)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(4) if rank != missing]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1


def test_a_rank_that_came_before_rank_0_names_who_is_missing_too():
    store, told = dist.HashStore(), []

    def come(rank, after):
        time.sleep(after)
        with pytest.raises(UserError) as error:
            Board(store, rank, 3, timedelta(seconds=0.4)).tell("place", lambda: None, nothing)
        told.append(str(error.value)[:11])

    threads = [threading.Thread(target=come, args=(rank, after)) for rank, after in ((1, 0), (0, 0.3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == ["rank 2 of 3"] * 2


def test_a_mistake_of_one_rank_is_all_ranks():
    def find(board):
        def fails():
            if board.rank == 1:
                raise UserError("no such interface")

        board.tell("place", fails, nothing)

    assert together(3, find) == ["no such interface"] * 3


def test_what_breaks_on_one_rank_is_told_on_all():
    def break_one(board):
        def find():
            if board.rank == 1:
                raise OSError("no buffer space available")

        board.tell("place", find, nothing)

    told = f"rank 1 on {socket.gethostname()}: OSError: no buffer space available"
    assert together(3, break_one) == [told] * 3


class Counting:
    """A store that counts how many values it hands out."""

    def __init__(self):
        self._store, self.values = dist.HashStore(), 0

    def __getattr__(self, name):
        return getattr(self._store, name)

    def get(self, key):
        self.values += 1
        return self._store.get(key)

    def multi_get(self, keys):
        self.values += len(keys)
        return self._store.multi_get(keys)


@pytest.mark.parametrize("size", [2, 16])
def test_values_read_at_the_start_grow_with_the_ranks_and_not_their_square(size):
    store = Counting()
    assert (
        together(size, lambda board: board.tell("place", lambda: board.rank, sum), store=store)
        == [size * (size - 1) / 2] * size
    )
    assert store.values == size + size - 1


def test_a_store_that_goes_while_ranks_start_is_told_as_such(monkeypatch):
    """And not as an endpoint where nobody was met."""

    class Gone(dist.Store):
        def set(self, *_):
            raise dist.DistNetworkError("connection closed")

    monkeypatch.setattr(network, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(dist, "PrefixStore", lambda *_: Gone())
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConnectionError, match=r"127\.0\.0\.1:29500: rank 1 on .* lost it while starting: rank 0 or its"
    ):
        network.join(1, 2, None, timedelta(seconds=5))


def test_each_attempt_of_a_launcher_begins_with_a_clean_store(monkeypatch):
    """torchrun's keeps it: what the last attempt said would count as said in this one."""
    store = dist.HashStore()
    monkeypatch.setattr(network, "rendezvous", lambda *_, **__: iter([(store, 0, 1)]))
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(network, "_joined", [])
    for attempt in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(attempt))
        found = network.join(0, 1, None, timedelta(seconds=5))
        assert not found.check(["failed"])
        found.set("failed", "")
        assert int(found.add("eupmim/network/place/arrived", 0)) == 1


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
    assert network._place(0, "203.0.113.7", None).address == "127.0.0.1"


def test_of_several_interfaces_that_were_asked_for_the_one_that_routes_to_the_others_counts(monkeypatch):
    def address(family, text):
        return SimpleNamespace(family=family, address=text)

    v4, v6 = socket.AF_INET, socket.AF_INET6
    found = {"lo": [address(v4, "127.0.0.1")], "ib0": [address(v4, "10.1.0.1"), address(v6, "fd77::1%ib0")]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {**found, "eth0": [address(v4, "10.0.0.1")]})
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0,eth0")
    assert network._place(0, "10.0.0.1", None).interface == "eth0"
    assert network._place(0, "fd77::9", None).address == "fd77::1"  # of the family that the others speak
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0,ib1")
    with pytest.raises(UserError, match=r"GLOO_SOCKET_IFNAME=ib1: rank 0 on .* has no such interface"):
        network._place(0, "10.0.0.1", None)


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
