"""The exchanges of a look-up between ranks, and what they cost."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import product

import torch.distributed as dist
from torch import Tensor

from eupmim_dist.parallel.world import World, collective_timeout

Parts = Sequence[Sequence[Tensor]]
"""Of each of several lists, one tensor per rank."""


@dataclass
class Cost:
    """What one kind of exchange has cost this rank so far."""

    calls: int = 0
    bytes: int = 0
    """Sent to other ranks."""
    between_nodes: int = 0
    """Of that to ranks of other nodes, where ranks are numbered node by node; without what `all_reduce` sends."""
    seconds: float = 0.0
    """The host's time in it; under NCCL that of starting it."""


KINDS = ("counts", "ids", "rows", "gradients", "replicated", "propagation")
"""Kinds of exchange; replicated are gradients of tables that every rank has whole, propagation rows of its layers and
their gradients."""


class Traffic(dict[str, Cost]):
    """Costs by kind of exchange."""

    def sent(self) -> list[int]:
        """Bytes of each of KINDS so far."""
        return [self.get(kind, Cost()).bytes for kind in KINDS]

    @contextmanager
    def measured(self, kind: str, num_bytes: int | None) -> Iterator[None]:
        """Around an exchange. The second half of one in two halves sends nothing and is no further call."""
        cost = self.setdefault(kind, Cost())
        started = time.perf_counter()
        yield
        cost.seconds += time.perf_counter() - started
        cost.calls += num_bytes is not None
        cost.bytes += num_bytes or 0


@dataclass(frozen=True)
class Connections:
    """Two gloo groups of all ranks. Their connections lock while they read a message, so that two ranks which send
    each other much over a single one take turns. The users of both (USERS) differ in their tags."""

    up: dist.ProcessGroup
    """For what a lower rank sends a higher one."""
    down: dist.ProcessGroup
    user: int
    """Among USERS."""


USERS = ("tables", "prefetch")
"""Threads that send and receive over the same connections, at the same time."""


def open_connections(user: str) -> Connections:
    """One of USERS; what a user sends nobody else receives. Made once per process, by all ranks together."""
    return Connections(_group("up"), _group("down"), USERS.index(user))


def background_group() -> dist.ProcessGroup:
    """For collectives of one thread beside the training's: over connections that else have no collectives."""
    return _group("up")


@cache
def _group(name: str) -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=collective_timeout()), group_desc=name)


class Exchange:
    """What ranks send each other: tensors on a CPU over `connections`, those on GPUs over the default group."""

    def __init__(self, world: World, traffic: Traffic, connections: Connections | None) -> None:
        """`connections` may be None where there is one rank."""
        self.world, self.traffic, self.connections = world, traffic, connections

    @contextmanager
    def receiving(self, kind: str, receive: Parts) -> Iterator[Callable[[Parts], None]]:
        """Exchanges ragged parts: `receive[i][r]` has been filled by rank r when the `with` ends; collective.

        The body is given a function that it must call once: `send[i][r]` goes to rank r. What it does before, the
        others need not wait for; what it does after, runs while the parts travel. What is empty is not sent, nor what
        a rank would send to itself. Point-to-point operations: no side packs, unpacks or copies anything.
        """
        waiting = self._operations(dist.irecv, receive)
        under_way: list[dist.Work] = []
        sent: list[dist.P2POp] = []  # what is sent is not to be freed, and written over, before it has left
        if not any(operation.tensor.is_cuda for operation in waiting):
            under_way += _start(waiting)  # now: gloo's sender need not ask a receiver that waits already
            waiting = []  # NCCL takes all of them at once

        def send(parts: Parts) -> None:
            operations = self._operations(dist.isend, parts)
            sent.extend(operations)
            with self.traffic.measured(kind, sum(operation.tensor.nbytes for operation in operations)):
                under_way.extend(_start(waiting + operations))
            size = self.world.local_size
            far = (
                operation.tensor.nbytes for operation in operations if operation.peer // size != self.world.rank // size
            )
            self.traffic[kind].between_nodes += sum(far)

        yield send
        with self.traffic.measured(kind, None):
            for work in under_way:
                work.wait()

    def all_reduce(self, kind: str, tensor: Tensor) -> None:
        """Sums over the ranks in place."""
        with self.traffic.measured(kind, all_reduce_bytes(tensor.nbytes, self.world)):
            dist.all_reduce(tensor)

    def _operations(self, function: Callable, lists: Parts) -> list[dist.P2POp]:
        operations = []
        for (number, parts), peer in product(enumerate(lists), range(self.world.size)):
            if peer == self.world.rank or not parts[peer].numel():
                continue
            if parts[peer].is_cuda:
                operations.append(dist.P2POp(function, parts[peer], peer, None, number))
            else:
                group, tag = self._connection(peer, function is dist.isend, number)
                operations.append(dist.P2POp(function, parts[peer], peer, group, tag))
        return operations

    def _connection(self, peer: int, sending: bool, number: int) -> tuple[dist.ProcessGroup, int]:
        """The group for the parts of a list, and their tag."""
        assert self.connections is not None, "several ranks have connections"
        group = self.connections.up if (self.world.rank < peer) == sending else self.connections.down
        return group, number * len(USERS) + self.connections.user


def all_reduce_bytes(num_bytes: int, world: World) -> int:
    """What a rank sends in a ring's all-reduce of so many bytes."""
    return 2 * num_bytes * (world.size - 1) // world.size


def _start(operations: list[dist.P2POp]) -> list[dist.Work]:
    if any(operation.tensor.is_cuda for operation in operations):
        return dist.batch_isend_irecv(operations)
    return [one.op(one.tensor, one.peer, one.group, one.tag) for one in operations]
