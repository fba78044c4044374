"""Before a process group is made: the network interface each rank talks over, and whether all fit and reach each other.

gloo would offer others the address that the host's name has on this host, often a loopback's, and find out late.
"""

import ipaddress
import json
import os
import platform
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

import eupmim_dist
from eupmim_dist.errors import UserError, listed, short
from eupmim_dist.telemetry.log import get_logger

REACH_SECONDS = 10
"""How long one host tries to reach another."""
LOOPBACK = "127.0.0.1"
PATIENCE_SECONDS = 15
"""After which rank 0 says whom all wait for."""
MUST_AGREE = ("torch", "accelerate", "numpy")
"""Packages that all hosts must have in the same version."""


@dataclass(frozen=True)
class Place:
    """Where a rank is: its host, and the interface and address others reach it by."""

    rank: int
    host: str
    interface: str
    address: str
    gpu: str | None = None
    """Which one it has, by UUID; None on a CPU."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} ({self.address}, {self.interface})"


_joined: list[Place] = []
_boards: list["_Board"] = []
"""The one of this process, while all ranks are known to read it."""


def join(rank: int, size: int, gpu: str | None, timeout: timedelta) -> dist.Store:
    """The store of the launcher or of rank 0; sets the interfaces that gloo and NCCL use.

    Where all ranks are on the host of the rendezvous, they use the loopback; else the interface that routes to it, or
    on that host to the others. GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME win, where they are set.

    Raises:
        UserError: a rank does not come, there is no such interface, hosts do not reach each other or have other
            versions, or two ranks have the same GPU. One rank of each host tells the reason.
    """
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
        board = _Board(dist.PrefixStore("eupmim/network", store), rank, size, timeout)
        _boards[:] = [board]
        source = _source(board)
        places = [Place(**told) for told in board.tell("place", lambda: asdict(_place(rank, source, gpu)))]
        _check(board, places)
    except dist.DistError as error:
        raise UserError(
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: rank {rank} on {socket.gethostname()} did not "
            f"meet the others there: {' '.join(str(error).split())}; give all hosts the endpoint of the first one, and "
            "let its port through"
        ) from error
    interface = places[rank].interface
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # that one, not all that begin so
    _joined[:] = places
    return store


def have_met() -> bool:
    """Whether the ranks can `tell` each other something: `join` may have refused them all the same."""
    return bool(_boards)


def tell(what: str, find: Callable[[], Any]) -> list[Any]:
    """What `find` returns on each rank, in their order, through the store alone. `what` is told once; what is found
    goes through JSON.

    Raises UserError, on all ranks, where `find` does on one, or one does not come.
    """
    return _boards[0].tell(what, find)


def described() -> str:
    """Hosts with their interfaces, addresses and ranks, the first ones of many; nothing where one rank is alone."""
    hosts: dict[str, list[int]] = {}
    for place in _joined:
        hosts.setdefault(f"{place.host} {place.interface} {place.address}", []).append(place.rank)
    spans = ((host, f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else ranks[0]) for host, ranks in hosts.items())
    return listed(f"{host} (rank {span})" for host, span in spans) if hosts else ""


def named(rank: int) -> str:
    """A rank in a message, with its host where there are several."""
    several = len({place.address for place in _joined}) > 1
    return f"rank {rank} on {_joined[rank].host}" if several else f"rank {rank}"


class _Board:
    """What ranks tell each other through the store, each thing once."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout.total_seconds()

    def tell(self, what: str, find: Callable[[], Any]) -> list[Any]:
        """What `find` returns on each rank, in their order. If it raises a UserError on one, all do."""
        try:
            told = {"value": find()}
        except UserError as error:
            told = {"mistake": error.as_typed}
        except Exception as error:  # of the system; the others must not wait for what never comes
            told = {"mistake": f"rank {self.rank} on {socket.gethostname()}: {type(error).__name__}: {error}"}
        self.store.set(f"{what}/{self.rank}", json.dumps(told))
        self.store.add(f"{what}/arrived", 1)
        self._await_all(what)
        every = [json.loads(each) for each in self.store.multi_get([f"{what}/{rank}" for rank in range(self.size)])]
        if mistakes := [each["mistake"] for each in every if "mistake" in each]:
            raise self._told_once(UserError(mistakes[0]))
        return [each["value"] for each in every]

    def _await_all(self, what: str) -> None:
        started, warned, pause = time.monotonic(), False, 0.001
        while self.store.add(f"{what}/arrived", 0) < self.size:
            waited = time.monotonic() - started
            if waited > min(PATIENCE_SECONDS, self.timeout) and not warned:
                warned = True
                get_logger(self.rank).warning(f"waiting for rank {self._missing(what)} of {self.size}")
            if waited > self.timeout:
                mend = "look at what it says there, and start all hosts with as many ranks and the same program"
                missing = f"rank {self._missing(what)} of {self.size} did not come within {self.timeout:g} s"
                _boards.clear()  # whoever is missing now is not waited for again
                raise self._told_once(UserError(f"{missing}; {mend}"))
            time.sleep(pause)
            pause = min(2 * pause, 0.2)

    def _missing(self, what: str) -> str:
        return listed(rank for rank in range(self.size) if not self.store.check([f"{what}/{rank}"]))

    def _told_once(self, error: UserError) -> UserError:
        """One of each host prints it; the others wait, as their launcher ends all ranks with the first."""
        if os.environ.get("LOCAL_RANK", "0") != "0":
            error.reported_elsewhere = True  # type: ignore[attr-defined]
            time.sleep(1)
        return error


def _source(board: _Board) -> str:
    """The address by which the others reach this rank's host."""
    remote, source = _route(os.environ["MASTER_ADDR"].strip("[]"))
    elsewhere = [told for told in board.tell("source", lambda: None if source == remote else source) if told]
    if source == remote:  # the host of the rendezvous, whose name may be a loopback's here
        return _route(elsewhere[0])[1] if elsewhere else LOOPBACK
    return source


def _route(host: str) -> tuple[str, str]:
    """A host's address, and the one from which this host sends there; the same on that host itself."""
    for family, _, _, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)  # sends nothing
                found = str(address[0]), str(probe.getsockname()[0])
        except OSError:
            continue
        return (LOOPBACK, LOOPBACK) if ipaddress.ip_address(found[1].partition("%")[0]).is_loopback else found
    return host, ""


def _place(rank: int, source: str, gpu: str | None) -> Place:
    host, internet = socket.gethostname(), (socket.AF_INET, socket.AF_INET6)
    addresses = {
        name: [each.address.partition("%")[0] for each in found if each.family in internet]
        for name, found in psutil.net_if_addrs().items()
    }
    named = os.environ.get("GLOO_SOCKET_IFNAME")
    if named and not addresses.get(named):
        there = listed(name for name, found in addresses.items() if found)
        raise UserError(
            f"GLOO_SOCKET_IFNAME={short(named)}: rank {rank} on {host} has no such interface with an address; "
            f"there are {there}; unset it, and the one that routes to the others is used"
        )
    if named:
        return Place(rank, host, named, source if source in addresses[named] else addresses[named][0], gpu)
    for name, found in addresses.items():
        if source.partition("%")[0] in found:
            return Place(rank, host, name, source, gpu)
    raise UserError(
        f"rank {rank} on {host}: no interface has the address {source or 'of a route to the others'}; set "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the one that the other hosts reach"
    )


def _check(board: _Board, places: list[Place]) -> None:
    """Raises UserError where ranks cannot work together. The first rank of each host looks for all there."""
    mine = places[board.rank]
    first: dict[str, Place] = {}
    for place in places:
        first.setdefault(place.address, place)
    leads = first[mine.address] is mine and len(first) > 1
    with ExitStack() as stack:

        def open_door() -> list[Any]:
            if not leads:
                return [0, {}]
            family = socket.AF_INET6 if ":" in mine.address else socket.AF_INET
            door = stack.enter_context(socket.create_server((mine.address, 0), family=family, backlog=len(first)))
            return [door.getsockname()[1], versions_here()]

        def look_round() -> None:
            for other in places[: board.rank]:
                if mine.gpu and other.gpu == mine.gpu:
                    raise UserError(
                        f"{mine} and {other} have the same GPU, {mine.gpu}: start one rank for each GPU, or "
                        "give each rank one of its own (CUDA_VISIBLE_DEVICES, SLURM's --gpus-per-task)"
                    )
            if not leads:
                return
            main, (_, versions) = places[0], doors[0]
            for name, found in doors[board.rank][1].items():
                if versions[name] != found:
                    raise UserError(
                        f"{mine} has {name} {found}, {main} has {versions[name]}: install the same on all hosts"
                    )
            for other in first.values():
                _reach(mine, other, doors[other.rank][0])

        doors = board.tell("door", open_door)
        board.tell("fits", look_round)


def _reach(mine: Place, other: Place, port: int) -> None:
    try:
        socket.create_connection((other.address, port), REACH_SECONDS, (mine.address, 0)).close()
    except OSError as error:
        raise UserError(
            f"{mine} does not reach {other}: {error.strerror or error}; let all ports through between the hosts, or "
            "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME on each to the interface that the others reach"
        ) from error


def versions_here() -> dict[str, str]:
    """What hosts must have alike; of this program its files too."""
    digest, here = sha256(), Path(eupmim_dist.__file__).parent
    for path in sorted(here.rglob("*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + path.read_bytes())
    ours = {"Python": ".".join(platform.python_version_tuple()[:2])} | {name: version(name) for name in MUST_AGREE}
    return ours | {"eupmim_dist": f"{eupmim_dist.__version__} ({digest.hexdigest()[:8]})"}
