"""The work of one rank of W without the others: what it sends a peer is what that peer is taken to send it.

Ranks draw their ids alike, so a rank is asked for about as many rows by each as it asks of it, and has as many
gradients to sum: the code that W ranks run, on as many rows, at any W, without a link. Otherwise than among ranks, no
two peers want the same row but by chance: more rows are updated, which step_seconds (scaling.py) takes into account,
and an agent of two_level asks for more, which nothing does.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.parallel.exchange import Exchange, Parts, Traffic
from eupmim_dist.parallel.route import Route, route_of
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import World


class Mirror(Exchange):
    """Gives each part back as the peer's, without any other rank."""

    def __init__(self, world: World, route: Route) -> None:
        super().__init__(world, Traffic(), None)
        self._levels = route.levels
        self._calls: Counter[str] = Counter()
        self.seconds = 0.0
        """That copying has taken so far: what a link does, and no work of a rank's."""
        self.beside: tuple[Exchange, Sequence[int]] | None = None
        """By what, and how many bytes, ranks that are there exchange something where they would exchange a step's."""

    @contextmanager
    def receiving(self, kind: str, receive: Parts) -> Iterator[Callable[[Parts], None]]:
        turn = self._calls[kind] % len(self._levels)  # gradients come from the last level
        peers = self._levels[-1 - turn if kind == "gradients" else turn].peers
        self._calls[kind] += 1
        with self._beside(peers, receive) as go:

            def send(parts: Parts) -> None:
                started = time.perf_counter()
                for into, given in zip(receive, parts, strict=True):
                    for peer, (to, part) in enumerate(zip(into, given, strict=True)):
                        if peer != self.world.rank and part.numel():
                            to.copy_(part)
                self.seconds += time.perf_counter() - started
                go()

            yield send

    @contextmanager
    def _beside(self, peers: range, receive: Parts) -> Iterator[Callable[[], None]]:
        if self.beside is None:
            yield lambda: None
            return
        (exchange, sizes), device = self.beside, receive[0][0].device
        numbers = [size * (peer in peers) for peer, size in enumerate(sizes)]
        sent, received = ([torch.empty(n, dtype=torch.uint8, device=device) for n in numbers] for _ in range(2))
        with exchange.receiving("rows", [received]) as send:
            yield lambda: send([sent])

    def all_reduce(self, kind: str, tensor: Tensor) -> None:
        """Alone there is nothing to add."""


def mirrored_tables(spec: TableSpec, seed: int, world: World, config: TablesConfig) -> ShardedTables:
    """A table as that rank of `world` holds it, whose others need not be there."""
    return ShardedTables([spec], seed, world, config, exchange=Mirror(world, route_of(config.exchange, world)))
