"""The exchanges of a look-up between ranks, and what they cost."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from eupmim_dist.parallel.world import World


@dataclass
class Cost:
    """What one kind of exchange has cost this rank so far."""

    calls: int = 0
    bytes: int = 0
    """Sent to other ranks."""
    seconds: float = 0.0
    """The host's time in it; under NCCL that of starting it."""


class Traffic(dict[str, Cost]):
    """Costs by kind of exchange: counts, ids, rows, gradients, replicated."""

    @contextmanager
    def measured(self, kind: str, num_bytes: int | None) -> Iterator[None]:
        """Around an exchange. The second half of one in two halves sends nothing and is no further call."""
        cost = self.setdefault(kind, Cost())
        started = time.perf_counter()
        yield
        cost.seconds += time.perf_counter() - started
        cost.calls += num_bytes is not None
        cost.bytes += num_bytes or 0


class Exchange:
    """What the ranks of a process group (None: the default one) send each other, each a collective."""

    def __init__(self, world: World, traffic: Traffic, group: dist.ProcessGroup | None = None) -> None:
        self.world, self.traffic, self.group = world, traffic, group

    def equal_parts(self, kind: str, message: Tensor) -> Tensor:
        """Row r of `message` [W, ...] goes to rank r; row r of the answer came from it."""
        answer = torch.empty_like(message)
        size = message.nbytes // self.world.size * (self.world.size - 1)
        with self.traffic.measured(kind, size):
            dist.all_to_all_single(answer, message, group=self.group)
        return answer

    @contextmanager
    def ragged_parts(
        self, kind: str, send: Sequence[Sequence[Tensor]], receive: Sequence[Sequence[Tensor]]
    ) -> Iterator[None]:
        """For each of several lists: `send[i][r]` goes to rank r, `receive[i][r]` has been filled by it at the end.

        The body of the `with` runs meanwhile. All-to-all by point-to-point operations (one grouped call under
        NCCL), so that neither side packs, unpacks or copies anything. What is empty is not sent, nor what a rank
        would send to itself.
        """
        peers = [rank for rank in range(self.world.size) if rank != self.world.rank]
        operations = [
            dist.P2POp(function, part, peer, self.group, tag)
            for function, lists in ((dist.irecv, receive), (dist.isend, send))
            for tag, parts in enumerate(lists)
            for peer in peers
            if (part := parts[peer]).numel()
        ]
        size = sum(parts[peer].nbytes for parts in send for peer in peers)
        with self.traffic.measured(kind, size):
            under_way = dist.batch_isend_irecv(operations) if operations else []
        yield
        with self.traffic.measured(kind, None):
            for work in under_way:
                work.wait()

    def all_reduce(self, kind: str, tensor: Tensor) -> None:
        """Sums over the ranks in place."""
        with self.traffic.measured(kind, 2 * tensor.nbytes * (self.world.size - 1) // self.world.size):
            dist.all_reduce(tensor, group=self.group)
