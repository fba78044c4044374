"""Before a process group is made: the network interface each rank talks over, and whether all fit and reach each other.

gloo would offer others the address that the host's name has on this host, often a loopback's, and find out late.
"""

import ipaddress
import os
import platform
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
from eupmim_dist.parallel import descriptors
from eupmim_dist.parallel.board import JOINED, STORE_SECONDS, Board, Late

REACH_SECONDS = 10
"""How long one host tries to reach another."""
LOOPBACK = "127.0.0.1"
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
    leads: bool = False
    """Whether it looks for all ranks of its host whether the other hosts fit."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} ({self.address}, {self.interface})"


_joined: list[Place] = []
_boards: list[Board] = []
"""The one of this process, while all ranks are known to read it."""


def join(rank: int, size: int, gpu: str | None, timeout: timedelta) -> dist.Store:
    """The store of the launcher or of rank 0; sets the interfaces that gloo and NCCL use.

    Where all ranks are on the host of the rendezvous, they use the loopback; else the interface that routes to it, or
    on that host to the others. GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME win, where they are set.

    Raises:
        UserError: a rank does not come, there is no such interface, hosts do not reach each other or have other
            versions, or two ranks have the same GPU. One rank of each host tells the reason.
    """
    endpoint = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    here = f"rank {rank} on {socket.gethostname()}"
    descriptors.allow(size)
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=timeout))
        store.set(f"{JOINED}/{os.environ.get('GROUP_RANK', '0')}", "")
    except dist.DistError as error:
        raise UserError(
            f"{endpoint}: {here} did not meet the others there: {' '.join(str(error).split())}; give all hosts the "
            "endpoint of the first one, and let its port through"
        ) from error
    # Of this attempt alone: torchrun keeps its store when it starts ranks again.
    store = dist.PrefixStore(f"attempt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    board = Board(dist.PrefixStore("eupmim/network", store), rank, size, timeout)
    _boards[:] = [board]
    try:
        with _gone_for_good():
            source = _source(board)
            places = _fitting(board, lambda: _place(rank, source, gpu))
    except dist.DistError as error:
        raise _in_silence_but_for_one(
            ConnectionError(f"{endpoint}: {here} lost it while starting: rank 0 or its launcher has left; see its host")
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
    with _gone_for_good():
        every: list[Any] = _boards[0].tell(what, find, list)
        return every


@contextmanager
def _gone_for_good() -> Iterator[None]:
    """Whoever is late once, or gone, is not waited for again."""
    try:
        yield
    except (Late, dist.DistError):
        _boards.clear()
        raise


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


def _in_silence_but_for_one(error: Exception) -> Exception:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        error.reported_elsewhere = True  # type: ignore[attr-defined]
        time.sleep(2 * STORE_SECONDS)
    return error


def _source(board: Board) -> str:
    """The address by which the others reach this rank's host."""
    found: list[str] = []

    def find() -> str | None:
        found.extend(_route(os.environ["MASTER_ADDR"].strip("[]")))
        return None if found[0] == found[1] else found[1]

    elsewhere = board.tell("source", find, lambda told: next(filter(None, told), None))
    remote, source = found
    if source == remote:  # the host of the rendezvous, whose name may be a loopback's here
        return _route(elsewhere)[1] if elsewhere else LOOPBACK
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
    bare, leads = source.partition("%")[0], source != LOOPBACK and os.environ.get("LOCAL_RANK", "0") == "0"
    asked = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    for name in asked:
        if not addresses.get(name):
            there = listed(name for name, found in addresses.items() if found)
            raise UserError(
                f"GLOO_SOCKET_IFNAME={short(name)}: rank {rank} on {host} has no such interface with an address; "
                f"there are {there}; unset it, and the one that routes to the others is used"
            )
    for name in asked or addresses:
        if bare in addresses[name]:
            return Place(rank, host, name, source, gpu, leads)
    if asked:
        alike = [address for address in addresses[asked[0]] if (":" in address) == (":" in source)]
        return Place(rank, host, asked[0], (alike or addresses[asked[0]])[0], gpu, leads)
    raise UserError(
        f"rank {rank} on {host}: no interface has the address {source or 'of a route to the others'}; set "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the one that the other hosts reach"
    )


class _Door(socketserver.TCPServer):
    """What other hosts try to reach this one by: lets each in, and out again."""

    request_queue_size = 128

    def __init__(self, address: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 0), socketserver.BaseRequestHandler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


def _fitting(board: Board, find: Callable[[], Place]) -> list[Place]:
    """Where all ranks are. Raises UserError where they cannot work together."""
    with ExitStack() as stack:

        def arrive() -> dict[str, Any]:
            descriptors.check(board.size)
            place = find()
            if not place.leads:
                return {"place": asdict(place)}
            door = stack.enter_context(_Door(place.address))
            stack.callback(door.shutdown)
            return {"place": asdict(place), "door": door.server_address[1], "versions": versions_here()}

        def look_round() -> None:
            mine = places[board.rank]
            for rank, port in doors if mine.leads else ():
                _reach(mine, places[rank], port)

        told, doors = board.tell("place", arrive, _compared)
        places = [Place(**each) for each in told]
        board.tell("fits", look_round, lambda _: None)
    return places


def _compared(arrived: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[tuple[int, int]]]:
    """On rank 0: all places, and by rank the ports of those that lead, once versions and GPUs are known to fit."""
    with_gpu: dict[str, Place] = {}
    doors: list[tuple[int, int]] = []
    main: dict[str, str] | None = None
    for each in arrived:
        place = Place(**each["place"])
        if place.gpu and (other := with_gpu.setdefault(place.gpu, place)) is not place:
            raise UserError(
                f"{place} and {other} have the same GPU, {place.gpu}: start one rank for each GPU, or "
                "give each rank one of its own (CUDA_VISIBLE_DEVICES, SLURM's --gpus-per-task)"
            )
        if not place.leads:
            continue
        doors.append((place.rank, each["door"]))
        main = main or each["versions"]
        for name, found in each["versions"].items():
            if main[name] != found:
                first = Place(**arrived[doors[0][0]]["place"])
                raise UserError(f"{place} has {name} {found}, {first} has {main[name]}: install the same on all hosts")
    return [each["place"] for each in arrived], doors


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
