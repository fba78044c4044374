"""Over which ranks a request for a row goes to the rank that holds it.

flat       every rank asks the holder.
two_level  it asks its agent: the rank of its own node with the holder's local number. An agent sorts what the ranks of
           its node ask it for, and asks the rank with its own local number on each other node once for each distinct
           row. Rows come back the same way, and gradients go it: summed per distinct row by the agent, sent on once.

So a row crosses a link once for a node, not once for each of its ranks, and a rank has M + N - 2 others to talk to
in place of W - 1; what goes within a node goes there in addition. Rows are the same bit by bit, and gradients are
summed in another order: of a node first, as are those of rows that all ranks hold (sums.py). W ranks = N nodes of M;
rank = node * M + local number.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from eupmim_dist.errors import UserError
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.placement import TableGroup
from eupmim_dist.parallel.world import World

ExchangeKind = Literal["flat", "two_level"]


@dataclass(frozen=True)
class Level:
    """One step on the way: the ranks that this one may ask, itself among them, and how many holders each is for."""

    peers: range
    holders: int


@dataclass(frozen=True)
class Route:
    """The levels in turn. The first one's peers stand for all holders in `order`, one's after another's."""

    levels: tuple[Level, ...]
    order: np.ndarray  # int64 [W], the place of each rank's rows among the keys

    def keys(self, group: TableGroup, table: str, ids: np.ndarray) -> np.ndarray:
        """Keys of a table's rows by which they sort as the levels need them."""
        keys = group.keys(table, ids)
        if len(self.levels) > 1 and not group.replicated:
            moved = (self.order - np.arange(len(self.order))) * group.stride
            keys += moved.take(keys // group.stride)
        return keys


def check_nodes(kind: ExchangeKind, world: World) -> None:
    """Raises UserError, on every rank, if two levels are asked for and nodes have not as many ranks, or these are not
    numbered node by node; collective."""
    size, local = world.size, world.local_size
    if kind == "two_level" and size > 1:
        places = everywhere((world.local_rank, world.local_size), world)
        if size % local or any(place != (rank % local, local) for rank, place in enumerate(places)):
            found = ", ".join(f"{number + 1} of {of}" for number, of in places[:8]) + ", ..." * (size > 8)
            raise UserError(
                "tables.exchange: two_level needs as many ranks on each node, numbered node by node, and the ranks "
                f"are {found}; start as many on each, or use flat"
            )


def route_of(kind: ExchangeKind, world: World) -> Route:
    """The route of this rank. On a single node, or on nodes of one rank, all is flat."""
    if kind == "two_level" and world.has_levels:
        return two_levels(world.rank, world.size, world.local_size)
    return Route((Level(range(world.size), 1),), np.arange(world.size))


def two_levels(rank: int, size: int, local: int) -> Route:
    """Of a rank, by the others of its node of `local` and then by those with its local number on other nodes."""
    node, number = divmod(rank, local)
    within, between = range(node * local, (node + 1) * local), range(number, size, local)
    ranks = np.arange(size)
    nodes = size // local
    return Route((Level(within, nodes), Level(between, 1)), ranks % local * nodes + ranks // local)
