"""The collectives that a training uses, each tried with known numbers and timed: small messages, and large ones.

W ranks.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from eupmim_dist.doctor.findings import Finding, failed, passed, warned
from eupmim_dist.parallel import collectives
from eupmim_dist.parallel.agreement import agreed, everywhere
from eupmim_dist.parallel.exchange import Exchange, Traffic, all_reduce_bytes, open_connections
from eupmim_dist.parallel.world import World

ROUNDS = 5
LARGE = {"cpu": 4 << 20, "cuda": 64 << 20}
"""Bytes that a rank gives to a collective, by the device it is on."""
SLOW_SECONDS, SLOW_BYTES = 0.02, 50e6
"""A small message that takes longer, or fewer bytes a second than these, are told."""


@dataclass(frozen=True)
class Timed:
    """The median of a few rounds, of the slowest rank."""

    seconds: float
    bytes: int = 0
    """Sent by a rank."""


Try = Callable[[int], int]
"""Makes a collective with so many bytes of each rank, checks what came, and returns the bytes that it has sent."""


def look_at_links(world: World) -> Iterator[Finding]:
    """Each collective, one after another; after one that fails there are no more. Collective."""
    host = torch.device("cpu")
    exchange = Exchange(world, Traffic(), open_connections("tables"))
    tries: list[tuple[str, torch.device, Try]] = [("exchange", host, _exchange(exchange, host))]
    if world.device.type == "cuda":
        tries.append(("exchange, GPU", world.device, _exchange(exchange, world.device)))
    tries += [
        ("all-reduce", world.device, _all_reduce(world)),
        ("all-gather", world.device, _all_gather(world)),
        ("all-to-all", world.device, _all_to_all(world)),
    ]
    for name, device, collective in tries:
        try:
            small = _timed(world, device, collective, 0)
            large = _timed(world, device, collective, LARGE[device.type])
        except Exception as error:
            yield _broken(name, error)
            return
        yield judged(name, small.seconds, large)
    for name, trip in (("broadcast", _objects(world)), ("store", _store(world))):
        try:
            small = _timed(world, host, trip, 0)
        except Exception as error:
            yield _broken(name, error)
            return
        yield judged(name, small.seconds, None)


def judged(name: str, latency: float, large: Timed | None) -> Finding:
    told, speed = f"{1e6 * latency:,.0f} us", None
    if large is not None:
        speed = large.bytes / large.seconds
        told += f"; {speed / 1e9:.2f} GB/s a rank, of {large.bytes / 1e6:,.1f} MB sent"
    if latency > SLOW_SECONDS or (speed is not None and speed < SLOW_BYTES):
        return warned(name, f"slow: {told}", "look at the network's interface, above, and at what else uses it")
    return passed(name, told)


def _broken(name: str, error: Exception) -> Finding:
    told = " ".join(str(error).split()) or type(error).__name__
    return failed(
        name,
        f"{told[:300]}; nothing after it was tried",
        "let all ports through between the hosts; NCCL_DEBUG=INFO tells more on GPUs",
        mistake=False,
    )


def _timed(world: World, device: torch.device, collective: Try, size: int) -> Timed:
    seconds, sent = [], 0
    with agreed(world):
        for number in range(ROUNDS + 1):
            collectives.barrier(world)
            started = time.perf_counter()
            sent = collective(size)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:  # connections are made in the first one
                seconds.append(time.perf_counter() - started)
    return Timed(max(everywhere(sorted(seconds)[ROUNDS // 2], world)), sent)


def _exchange(exchange: Exchange, device: torch.device) -> Try:
    """As rows travel: another number of them to every rank."""
    rank, size = exchange.world.rank, exchange.world.size

    def length(sender: int, receiver: int, room: int) -> int:
        return 0 if sender == receiver else room // (8 * size) * (1 + (sender + receiver) % 3) + 1

    def make(room: int) -> int:
        send = [torch.full((length(rank, to, room),), float(rank * size + to), device=device) for to in range(size)]
        receive = [torch.zeros(length(of, rank, room), device=device) for of in range(size)]
        with exchange.receiving("doctor", [receive]) as go:
            go([send])
        for of, part in enumerate(receive):
            if of != rank:
                _check(part, float(of * size + rank), f"what rank {of} sent")
        return sum(part.nbytes for to, part in enumerate(send) if to != rank)

    return make


def _all_reduce(world: World) -> Try:
    def make(room: int) -> int:
        tensor = torch.full((room // 4 + 1,), float(world.rank + 1), device=world.device)
        _check(collectives.sum_(tensor, world), world.size * (world.size + 1) / 2, "the sum")
        return all_reduce_bytes(tensor.nbytes, world)

    return make


def _all_gather(world: World) -> Try:
    def make(room: int) -> int:
        tensor = torch.full((room // 4 // world.size + 1,), float(world.rank), device=world.device)
        for of, part in enumerate(collectives.all_gather(tensor, world).chunk(world.size)):
            _check(part, float(of), f"what rank {of} gave")
        return tensor.nbytes * (world.size - 1)

    return make


def _all_to_all(world: World) -> Try:
    def make(room: int) -> int:
        each = room // 4 // world.size + 1
        tensor = torch.arange(world.size, device=world.device, dtype=torch.float32).repeat_interleave(each)
        found = collectives.all_to_all(tensor + world.size * world.rank, world)
        for of, part in enumerate(found.chunk(world.size)):
            _check(part, float(world.size * of + world.rank), f"what rank {of} sent")
        return each * 4 * (world.size - 1)

    return make


def _objects(world: World) -> Try:
    def make(room: int) -> int:
        told = [{"step": 1} if world.is_main else None]
        dist.broadcast_object_list(told, device=torch.device("cpu"))
        if told != [{"step": 1}]:
            raise RuntimeError(f"an object arrived as {told}")
        return 0

    return make


def _store(world: World) -> Try:
    store = dist.distributed_c10d._get_default_store()

    def make(room: int) -> int:
        store.set(f"eupmim/doctor/{world.rank}", "1")
        if store.get(f"eupmim/doctor/{world.rank}") != b"1":
            raise RuntimeError("the store gave back something else")
        return 0

    return make


def _check(found: Tensor, expected: float, what: str) -> None:
    if not bool((found == expected).all()):
        raise RuntimeError(f"{what} did not arrive as it was: the network or a library damages data")
