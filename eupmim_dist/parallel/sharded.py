"""Embedding tables over W ranks: a step moves each distinct row that a rank needs once, and its gradient back once.

One look-up (lookup.py) serves all tables and all their uses. Its phases, each with at most one exchange of data:

plan       ids -> which distinct rows are wanted of whom; may run ahead (prefetch.py)
fetch      the owners send the rows; every use gets its copy, a leaf of autograd
gradients  after the backward pass, summed per distinct row, sent to the owners and summed there

Rows of a model that propagates (propagation.py) are looked up and scored as they are propagated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.data.graph import InteractionGraph, Known
from eupmim_dist.models.features import Feature
from eupmim_dist.models.interface import TableSpec, Uses
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.catalogue import ScoredRows, ShardedCatalogue
from eupmim_dist.parallel.exchange import Connections, Exchange, Traffic, open_connections
from eupmim_dist.parallel.features import RowFeatures
from eupmim_dist.parallel.lookup import Lookup
from eupmim_dist.parallel.placement import Shard, TableGroup, build_groups
from eupmim_dist.parallel.plan import Plan, make_plan, pinned
from eupmim_dist.parallel.propagation import TABLES, GraphPropagation, LeftOut
from eupmim_dist.parallel.route import check_nodes, route_of
from eupmim_dist.parallel.sums import add_up
from eupmim_dist.parallel.world import World


@dataclass(frozen=True)
class Load:
    """One rank's part in a table."""

    rows: int
    requests: int
    """Rows that ranks, itself included, have fetched from it: distinct ones per rank (two_level: node) and step."""


class ShardedTables:
    """All tables of a model. `shards` are this rank's rows of each, `groups` the tensors that hold them."""

    def __init__(
        self,
        specs: Sequence[TableSpec],
        seed: int,
        world: World,
        config: TablesConfig,
        scored_whole: str | None = None,
        features: Sequence[Feature] = (),
        graph: InteractionGraph | None = None,
        num_layers: int = 0,
        exchange: Exchange | None = None,
    ) -> None:
        """Creates this rank's rows; collective. `scored_whole` is the table that `catalogue` gives.

        Rows of a table with `features` are looked up and scored with what these add; their tables are created too.
        With a `graph` those of the tables `user` and `item` are propagated over it in `num_layers` layers.
        A given `exchange` is of ranks that are not there (bench/mirror.py): with them nothing is agreed upon.

        Raises ValueError, on every rank, if two tables have one name, if the ranks disagree on the tables, the seed
        or the configuration, or if the process group has another size than a `world` of several ranks; UserError if
        nodes do not fit the configured exchange.
        """
        self.world = world
        specs = [*specs, *(feature.spec for feature in features)]
        if exchange is None:
            _check_agreement(specs, seed, config, world)
            check_nodes(config.exchange, world)
            exchange = Exchange(world, Traffic(), open_connections("tables") if world.size > 1 else None)
        self.exchange, self.traffic = exchange, exchange.traffic
        self._route = route_of(config.exchange, world)
        featured = {feature.table for feature in features}
        alone = featured | ({scored_whole} if scored_whole else set()) | (set(TABLES) if graph else set())
        self.groups = build_groups(specs, config, seed, world, alone)
        self.shards: dict[str, Shard] = {
            name: group.shard(name, world) for group in self.groups for name in group.members
        }
        self._features: dict[str, RowFeatures] = {}
        for table in featured:
            of_table = [feature for feature in features if feature.table == table]
            held = self.number_of(of_table[0].spec.name)
            self._features[table] = RowFeatures(of_table, self.shards[table], self.groups[held], held, world.device)
        self.propagation = None if graph is None else GraphPropagation(graph, num_layers, self.shards, world)
        self.propagated = {} if graph is None else {table: self._scored(table) for table in TABLES}
        self._whole = None
        if scored_whole is not None:
            self._whole = self.propagated.get(scored_whole) or self._scored(scored_whole)
        self.row_format = getattr(torch, config.row_format)
        self.gradient_format = getattr(torch, config.gradient_format)
        self.requests = dict.fromkeys(self.shards, 0)

    def plan(self, micro_batches: Sequence[Uses], connections: Connections | None = None, stop: bool = False) -> Plan:
        """Plans the look-up of named uses, for each micro-batch of a step; collective.

        A thread that runs beside the training has `connections` of its own. If any rank asks to `stop`, all plans say
        so. Raises, on every rank, what `make_plan` raises.
        """
        exchange = self.exchange if connections is None else Exchange(self.world, self.traffic, connections)
        return self._plan(micro_batches, exchange, stop)

    def _plan(self, micro_batches: Sequence[Uses], exchange: Exchange, stop: bool = False) -> Plan:
        plan = make_plan(self.groups, micro_batches, self._route, exchange, stop)
        return pinned(plan) if self.world.device.type == "cuda" else plan

    def left_out(self, edges: tuple[Tensor, Tensor]) -> LeftOut | None:
        """For `fetch`: which edges of this rank's are between users and items, int64 [k] each, NO_ROW for none."""
        return None if self.propagation is None else self.propagation.left_out(*edges)

    def fetch(self, plan: Plan, left_out: LeftOut | None = None) -> Lookup:
        """The rows of a plan; collective.

        They are propagated, without the edges that are `left_out`, where a use names such a table or one is scored
        whole: a matter of the kind of batch, which is alike on all ranks.
        """
        for name, count in plan.requests.items():
            self.requests[name] += count
        if self.propagation is not None:
            self.propagation.drop()
            named = any(plan.groups[self.number_of(table)].blocks for table in self.propagated)
            if named or self._whole in self.propagated.values():
                self.propagation.make(self._learnt(), self.exchange, left_out)
        return Lookup(self, plan, self.row_format, self.exchange, left_out)

    def to_rank(self, known: Known) -> "RankedTables":
        """The rows as they are now, to rank with where so much of users is known."""
        if self.propagation is not None:
            self.propagation.drop()
        return RankedTables(self, known)

    def _learnt(self) -> dict[str, Tensor]:
        """The rows that are propagated, as they are before."""
        return {table: part.learnt() for table, part in self.propagated.items()}

    def scored(self, table: str, known: Known = "train") -> ScoredRows:
        """The rows of a table that this rank scores where so much of users is known; collective."""
        self._propagate_to_rank(known)
        return self._scored(table)

    def _scored(self, table: str) -> ScoredRows:
        propagation = self.propagation if table in TABLES else None
        return ScoredRows(self.shards[table], self.world, self._features.get(table), propagation)

    def _propagate_to_rank(self, known: Known) -> None:
        """Unless that is what is held: two who rank may know more or less, in turn."""
        if self.propagation is not None and not self.propagation.there_to_rank(known):
            exchange = Exchange(self.world, Traffic(), self.exchange.connections)
            self.propagation.make_to_rank(self._learnt(), exchange, known)

    def add_up(self, gradients: Tensor) -> None:
        """Sums gradients of rows that every rank holds over the ranks, in place; collective."""
        add_up(gradients, self.exchange, self._route)

    def number_of(self, table: str) -> int:
        """Of the group that holds it."""
        return next(number for number, group in enumerate(self.groups) if table in group.members)

    def features_of(self, group: TableGroup) -> RowFeatures | None:
        """Those of its rows, if they have any: then it holds one table alone."""
        return self._features.get(next(iter(group.members)))

    def catalogue(self) -> ShardedCatalogue:
        """This rank's rows of the table that is scored whole, for one step."""
        assert self._whole is not None, "tables were made without one that is scored whole"
        return ShardedCatalogue(self._whole)

    def load(self) -> dict[str, list[Load]]:
        """What each rank holds of each sharded table and has been asked for so far, by rank; collective."""
        mine = {
            name: Load(len(shard.weight), self.requests[name])
            for name, shard in self.shards.items()
            if not shard.replicated
        }
        ranks = everywhere(mine, self.world)
        return {name: [of_rank[name] for of_rank in ranks] for name in mine}

    def lookup(self, uses: Uses, known: Known = "train") -> Lookup:
        """Plans and fetches a single batch, to rank where so much of users is known: rows travel as float32;
        collective.

        Neither requests nor traffic are counted: those are of training.
        """
        self._propagate_to_rank(known)
        exchange = Exchange(self.world, Traffic(), self.exchange.connections)
        return Lookup(self, self._plan([uses], exchange), torch.float32, exchange)


@dataclass(frozen=True)
class RankedTables:
    """Tables as one ranks with them, who knows so much of users."""

    tables: ShardedTables
    known: Known

    @property
    def world(self) -> World:
        return self.tables.world

    def scored(self, table: str) -> ScoredRows:
        """`ShardedTables.scored`; collective."""
        return self.tables.scored(table, self.known)

    def lookup(self, uses: Uses) -> Lookup:
        """`ShardedTables.lookup`; collective."""
        return self.tables.lookup(uses, self.known)


def _check_agreement(specs: Sequence[TableSpec], seed: int, config: TablesConfig, world: World) -> None:
    names = [spec.name for spec in specs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two tables are called {min(twice)}")
    if world.size == 1:
        return
    if dist.get_world_size() != world.size:
        raise ValueError(f"the process group has {dist.get_world_size()} ranks, the world {world.size}")
    described = [(spec.name, spec.rows, spec.dim) for spec in specs], seed, config.model_dump_json()
    first, *others = everywhere(described, world)
    for rank, other in enumerate(others, start=1):
        if other != first:
            raise ValueError(f"rank {rank} has other tables or settings than rank 0: {other} and {first}")
