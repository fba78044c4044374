"""Propagation over the shards (models/propagation.py says what it computes): each rank its own rows of every layer.

A rank holds the edges of its users and those of its items. Which rows of others they reach is known from the graph
alone, and so is which of its own the others need: row r is wanted by the ranks that hold a neighbour of r. So no plan
has to be exchanged; a layer moves each row once to every rank that needs it.

A is symmetric, and stays so where edges are left out in both directions. Hence the gradient of the rows of E is the
propagation of that of the rows of G: the same products, and nothing to be kept from the forward pass.

Edges that are left out of a step are zeros; degrees are those of the whole graph, as an evaluation has them, so that a
target takes nothing from what its user's and its item's other edges weigh.

A rank holds 16 bytes per edge of its users, and again per edge of its items, and those of another graph that it last
ranked with; while they are built, by blocks, some four times as much, and the degrees of all users and items, 8 bytes
each. A propagation takes 3 n + h rows of D numbers, n of which stay: those of G.

W ranks, n rows of this rank, h rows of others that it needs, e edges of its rows, D dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.graph import InteractionGraph, Known
from eupmim_dist.models.interface import ITEM_TABLE, USER_TABLE
from eupmim_dist.parallel.collectives import all_gather
from eupmim_dist.parallel.exchange import Exchange
from eupmim_dist.parallel.placement import Shard
from eupmim_dist.parallel.world import World

TABLES = (USER_TABLE, ITEM_TABLE)
BOTH_WAYS = ((USER_TABLE, ITEM_TABLE), (ITEM_TABLE, USER_TABLE))
ByTable = dict[str, Tensor]
Edges = tuple[np.ndarray, np.ndarray]
"""Keys, as `_Side` has them, and weights."""
LeftOut = ByTable
"""Table -> int64, which edges of its rows are no part of a step."""


@dataclass(frozen=True)
class _Side:
    """The edges of this rank's rows of one table, row after row, each ascending by the neighbour's stored position: so
    products are added up in the same order at any number of ranks."""

    first: int
    """Its first row's stored position."""
    num_others: int
    """Rows of the other table."""
    keys: np.ndarray  # int64 [e] ascending: row * num_others + the neighbour's stored position
    starts: Tensor  # int32 or int64 [n], of each row's edges
    reached: Tensor  # of the same type [e], where `_with_others` has the neighbour
    weights: Tensor  # float32 [e]
    sent: list[Tensor]  # by rank: int64, which of these rows each of the others needs
    needed: list[int]  # by rank: how many of the other table's rows this one needs of each

    def product(self, others: Tensor, weights: Tensor) -> Tensor:
        """This rank's rows of A times the other table, [n, D]: zeros for those without an edge."""
        if not len(self.reached):
            return others.new_zeros(len(self.starts), others.shape[1])
        return F.embedding_bag(self.reached, others, self.starts, mode="sum", per_sample_weights=weights)

    def weights_without(self, left_out: Tensor) -> Tensor:
        return self.weights.index_fill(0, left_out.to(self.weights.device, non_blocking=True), 0.0)

    def places(self, positions: np.ndarray, others: np.ndarray) -> Tensor:
        """Which edges are between stored positions of this table and of the other, where this rank has them."""
        mine = (positions >= self.first) & (positions < self.first + len(self.starts))
        wanted = (positions[mine] - self.first) * self.num_others + others[mine]
        place = np.searchsorted(self.keys, wanted)
        inside = place < len(self.keys)
        place, wanted = place[inside], wanted[inside]
        return torch.from_numpy(place[self.keys[place] == wanted])


Sides = dict[str, _Side]
"""By table."""


class GraphPropagation:
    """The rows of G that this rank holds, made of those of E by `make`; `held` until they are dropped."""

    def __init__(self, graph: InteractionGraph, num_layers: int, shards: Mapping[str, Shard], world: World) -> None:
        """Reads the graph; `shards` are of the tables `user` and `item`."""
        self.num_layers, self.world = num_layers, world
        self.shards = {table: shards[table] for table in TABLES}
        self._sides = self._sides_of(graph)
        self._graphs: dict[Known, InteractionGraph] = {"train": graph}  # by what was asked for
        self._ranked: tuple[Known, Sides] = graph.known, self._sides  # of the graph that was last ranked with
        self._held: ByTable | None = None
        self._held_for: Known | None = None

    def _sides_of(self, graph: InteractionGraph) -> Sides:
        edges = _own_edges(graph, self.shards, self.world)
        return {
            table: _side(self.shards[table], self.shards[other], *edges[table], self.world)
            for table, other in BOTH_WAYS
        }

    @property
    def there(self) -> bool:
        return self._held is not None

    def held(self, table: str) -> Tensor:
        """The rows of G for those of this rank's shard, [n, D]."""
        assert self._held is not None, "they have been made"
        return self._held[table]

    def drop(self) -> None:
        """What they were made of changes."""
        self._held = self._held_for = None

    def there_to_rank(self, known: Known) -> bool:
        return self._held_for == self._graph(known).known

    def _graph(self, known: Known) -> InteractionGraph:
        if known not in self._graphs:
            self._graphs[known] = self._graphs["train"].where_known(known)
        return self._graphs[known]

    def make(self, rows: ByTable, exchange: Exchange, left_out: LeftOut | None = None) -> None:
        """Of this rank's blocks of rows [n, D], for a training step; collective."""
        self.drop()  # before there are others
        self._held = self.propagated(rows, exchange, left_out)

    def make_to_rank(self, rows: ByTable, exchange: Exchange, known: Known) -> None:
        """The same to rank with, where so much of users is known; collective."""
        self.drop()
        graph, of_training = self._graph(known), self._graph("train")
        if graph.known != self._ranked[0]:
            self._ranked = of_training.known, self._sides  # before there is another
            if graph is not of_training:
                self._ranked = graph.known, self._sides_of(graph)
        self._held = self.propagated(rows, exchange, sides=self._ranked[1])
        self._held_for = graph.known

    @torch.no_grad()
    def propagated(
        self, rows: ByTable, exchange: Exchange, left_out: LeftOut | None = None, sides: Sides | None = None
    ) -> ByTable:
        """This rank's blocks [n, D] of both tables -> theirs after propagation, over the graph of training if no other
        is given, of a table that all hold, whole; collective."""
        sides = self._sides if sides is None else sides
        weights = {
            table: side.weights if left_out is None else side.weights_without(left_out[table])
            for table, side in sides.items()
        }
        found = rows
        for _ in range(self.num_layers):  # mean over k of A^k E = (E + A (E + A (E + ...))) / (num_layers + 1)
            reached = self._with_others(found, sides, exchange)
            found = {
                table: sides[table].product(reached[other], weights[table]).add_(rows[table])
                for table, other in BOTH_WAYS
            }
        return {table: self._whole(table, of_table.div_(self.num_layers + 1)) for table, of_table in found.items()}

    def left_out(self, users: Tensor, items: Tensor) -> LeftOut:
        """Where edges between users and items, int64 [k] each or NO_ROW, are among this rank's."""
        known = (users != NO_ROW) & (items != NO_ROW)
        ids = {USER_TABLE: users[known].numpy(), ITEM_TABLE: items[known].numpy()}
        positions = {table: self.shards[table].order.positions(of_table) for table, of_table in ids.items()}
        return {table: self._sides[table].places(positions[table], positions[other]) for table, other in BOTH_WAYS}

    def _with_others(self, rows: ByTable, sides: Sides, exchange: Exchange) -> ByTable:
        """This rank's rows and behind them those of others that its edges reach, [n + h, D]."""
        if self.world.size == 1:
            return rows
        reached, receive = {}, []
        for table, other in BOTH_WAYS:
            own, needed = rows[table], sides[other].needed
            reached[table] = own.new_empty(len(own) + sum(needed), own.shape[1])
            receive.append(reached[table][len(own) :].split(needed))
        with exchange.receiving("propagation", receive) as send:
            send([[rows[table].index_select(0, some) for some in sides[table].sent] for table in TABLES])
            for table, own in rows.items():
                reached[table][: len(own)] = own
        return reached

    def _whole(self, table: str, block: Tensor) -> Tensor:
        shard = self.shards[table]
        if not shard.replicated or self.world.size == 1:
            return block
        longest = -(-shard.spec.rows // self.world.size)
        padded = F.pad(block, (0, 0, 0, longest - len(block)))
        return all_gather(padded, self.world)[: shard.spec.rows]


def _block(shard: Shard, world: World) -> tuple[int, int]:
    """The stored positions that this rank propagates."""
    return block_range(shard.spec.rows, world.rank, world.size)


def _side(shard: Shard, other: Shard, keys: np.ndarray, weights: np.ndarray, world: World) -> _Side:
    (first, stop), (here, end) = _block(shard, world), _block(other, world)
    num_others = other.spec.rows
    block = -(-num_others // world.size)
    row, neighbour = np.divmod(keys, num_others)
    owner = neighbour // block
    away = np.unique(neighbour[owner != world.rank])
    place = np.where(owner == world.rank, neighbour - here, end - here + np.searchsorted(away, neighbour))
    dtype = np.int32 if max(len(keys), end - here + len(away)) < 1 << 31 else np.int64
    starts = np.searchsorted(keys, np.arange(stop - first) * num_others)
    return _Side(
        first=first,
        num_others=num_others,
        keys=keys,
        starts=torch.from_numpy(starts.astype(dtype)).to(world.device),
        reached=torch.from_numpy(place.astype(dtype)).to(world.device),
        weights=torch.from_numpy(weights).to(world.device),
        sent=[
            torch.from_numpy(np.unique(row[(owner == rank) & (rank != world.rank)])).to(world.device)
            for rank in range(world.size)
        ],
        needed=np.bincount(away // block, minlength=world.size).tolist(),
    )


def _own_edges(graph: InteractionGraph, shards: dict[str, Shard], world: World) -> dict[str, Edges]:
    """Those of this rank's rows of each table."""
    found: dict[str, list[Edges]] = {table: [] for table in TABLES}
    of_users, of_items = graph.degrees()
    for users, items in graph.edges():
        weights = (1 / np.sqrt(of_users[users] * of_items[items])).astype(np.float32)
        ids = {USER_TABLE: users, ITEM_TABLE: items}
        positions = {table: shards[table].order.positions(of_table) for table, of_table in ids.items()}
        for table, other in BOTH_WAYS:
            first, stop = _block(shards[table], world)
            mine = (positions[table] >= first) & (positions[table] < stop)
            keys = (positions[table][mine] - first) * shards[other].spec.rows + positions[other][mine]
            found[table].append((keys, weights[mine]))
    return {table: _sorted(parts) for table, parts in found.items()}


def _sorted(parts: list[Edges]) -> Edges:
    keys = np.concatenate([np.empty(0, np.int64), *(keys for keys, _ in parts)])
    weights = np.concatenate([np.empty(0, np.float32), *(weights for _, weights in parts)])
    order = keys.argsort(kind="stable")
    return keys[order], weights[order]
