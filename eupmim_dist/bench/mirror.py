"""The work of one rank of W without the others: what it sends a peer is what that peer is taken to send it.

Ranks draw their ids alike, so a rank is asked for about as many rows by each as it asks of it, and has as many
gradients to sum: the code that W ranks run, on as many rows, at any W, without a link. Otherwise than among ranks, no
two peers want the same row but by chance: more rows are updated, which step_seconds (scaling.py) takes into account,
and an agent of two_level asks for more, which nothing does.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.parallel.exchange import Exchange, Parts, Traffic
from eupmim_dist.parallel.route import Route, route_of
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import World


class Mirror(Exchange):
    """Gives each part back as the peer's, without any other rank."""

    def __init__(self, world: World, route: Route) -> None:
        super().__init__(world, Traffic(), None)
        self._route = route
        self.seconds = 0.0
        """That copying has taken so far: what a link does, and no work of a rank's."""
        self.beside: tuple[Exchange, Sequence[int]] | None = None
        """What exchanges are made of beside: so many bytes to and from each rank, of those that a level has."""

    @contextmanager
    def receiving(self, kind: str, receive: Parts) -> Iterator[Callable[[Parts], None]]:
        with self._beside(receive) as go:

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
    def _beside(self, receive: Parts) -> Iterator[Callable[[], None]]:
        if self.beside is None:
            yield lambda: None
            return
        exchange, sizes = self.beside
        asked = {peer for into in receive for peer, part in enumerate(into) if part.numel()} - {self.world.rank}
        if not asked:  # by which the level is known
            raise UserError("bench scaling: a rank wants no row of any other in a step; give more --samples or --rows")
        peers = next(level.peers for level in self._route.levels if asked <= {*level.peers})
        device = receive[0][0].device
        parts = [
            torch.zeros(size * (peer in peers), device=device, dtype=torch.uint8) for peer, size in enumerate(sizes)
        ]
        with exchange.receiving("rows", [[torch.empty_like(part) for part in parts]]) as send:
            yield lambda: send([parts])

    def all_reduce(self, kind: str, tensor: Tensor) -> None:
        """Alone there is nothing to add."""


def mirrored_tables(spec: TableSpec, seed: int, world: World, config: TablesConfig) -> ShardedTables:
    """A table as that rank of `world` holds it, whose others need not be there."""
    return ShardedTables([spec], seed, world, config, exchange=Mirror(world, route_of(config.exchange, world)))
