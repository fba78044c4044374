"""Embedding tables over W ranks: a step moves each distinct row that a rank needs once, and its gradient back once.

One look-up serves all tables and all their uses. Its phases, each with at most one exchange of data:

plan       ids -> which distinct rows are wanted of whom; may run ahead (prefetch.py)
fetch      the owners send the rows; every use gets its copy, a leaf of autograd
gradients  after the backward pass, summed per distinct row, sent to the owners and summed there

n uses on this rank, u distinct rows among them, m rows that ranks want of this one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.models.features import Feature
from eupmim_dist.models.interface import Rows, TableSpec, Uses
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.catalogue import ScoredRows, ShardedCatalogue
from eupmim_dist.parallel.exchange import Connections, Exchange, Traffic, open_connections
from eupmim_dist.parallel.features import RowFeatures
from eupmim_dist.parallel.merge import merge_rows
from eupmim_dist.parallel.placement import Shard, TableGroup, build_groups
from eupmim_dist.parallel.plan import GroupPlan, Plan, UseBlock, make_plan, without
from eupmim_dist.parallel.world import World

FLOAT16_GRADIENT_SCALE = 4096.0
"""Gradients of a mean over a batch are small: sent as float16 they are multiplied by this, to reach 1.5e-11 to 16."""


Counted = tuple[Tensor, list[int]]
"""Rows, and how many of them belong to each rank, in their order."""


@dataclass(frozen=True)
class RowGradients:
    """Gradients of the touched rows of one group, summed over every use of a row on every rank."""

    rows: Tensor  # int64 [k] ascending, distinct rows of the group's tensor, on its device
    values: Tensor  # float32 [k, dim], on the ranks' device

    def none(self) -> "RowGradients":
        """Of no row."""
        return RowGradients(self.rows[:0], self.values[:0])


@dataclass(frozen=True)
class Load:
    """One rank's part in a table."""

    rows: int
    requests: int
    """Rows that ranks, itself included, have fetched from it: distinct ones per rank and step."""


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
    ) -> None:
        """Creates this rank's rows; collective. `scored_whole` is the table that `catalogue` gives.

        Rows of a table with `features` are looked up and scored with what these add; their tables are created too.

        Raises ValueError, on every rank, if two tables have one name, if the ranks disagree on the tables, the seed
        or the configuration, or if the process group has another size than a `world` of several ranks.
        """
        self.world = world
        self.traffic = Traffic()
        specs = [*specs, *(feature.spec for feature in features)]
        _check_agreement(specs, seed, config, world)
        featured = {feature.table for feature in features}
        self.groups = build_groups(specs, config, seed, world, featured | ({scored_whole} if scored_whole else set()))
        self.shards: dict[str, Shard] = {
            name: group.shard(name, world) for group in self.groups for name in group.members
        }
        self._features: dict[str, RowFeatures] = {}
        for table in featured:
            of_table = [feature for feature in features if feature.table == table]
            held = next(n for n, group in enumerate(self.groups) if of_table[0].spec.name in group.members)
            self._features[table] = RowFeatures(of_table, self.shards[table], self.groups[held], held, world.device)
        self._whole = None if scored_whole is None else self.scored(scored_whole)
        self.row_format = getattr(torch, config.row_format)
        self.gradient_format = getattr(torch, config.gradient_format)
        self.requests = dict.fromkeys(self.shards, 0)
        self.exchange = Exchange(world, self.traffic, open_connections("tables") if world.size > 1 else None)

    def plan(self, micro_batches: Sequence[Uses], connections: Connections | None = None, stop: bool = False) -> Plan:
        """Plans the look-up of named uses, for each micro-batch of a step; collective.

        A thread that runs beside the training has `connections` of its own. If any rank asks to `stop`, all plans say
        so. Raises, on every rank, what `make_plan` raises.
        """
        exchange = Exchange(self.world, self.traffic, connections or self.exchange.connections)
        return self._plan(micro_batches, exchange, stop)

    def _plan(self, micro_batches: Sequence[Uses], exchange: Exchange, stop: bool = False) -> Plan:
        plan = make_plan(self.groups, micro_batches, exchange, stop)
        if self.world.device.type == "cuda":
            plan = replace(plan, groups=[part.pinned() for part in plan.groups])
        return plan

    def fetch(self, plan: Plan) -> "Lookup":
        """The rows of a plan; collective."""
        for name, count in plan.requests.items():
            self.requests[name] += count
        return Lookup(self, plan, self.row_format, self.exchange)

    def scored(self, table: str) -> ScoredRows:
        """The rows of a table that this rank scores."""
        return ScoredRows(self.shards[table], self.world, self._features.get(table))

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

    def lookup(self, uses: Uses) -> "Lookup":
        """Plans and fetches a single batch, for ranking: rows travel as float32; collective.

        Neither requests nor traffic are counted: those are of training.
        """
        exchange = Exchange(self.world, Traffic(), self.exchange.connections)
        return Lookup(self, self._plan([uses], exchange), torch.float32, exchange)


class Lookup:
    """The rows of one step: `rows[micro_batch][use]` has the shape of the ids plus the table's width.

    They are leaves of autograd, and zero where the id is NO_ROW. After `backward` of a loss of each micro-batch,
    `gradients` brings their gradients to the owners.
    """

    def __init__(self, tables: ShardedTables, plan: Plan, row_format: torch.dtype, exchange: Exchange) -> None:
        self._tables, self._plan, self._row_format, self._exchange = tables, plan, row_format, exchange
        self._device = tables.world.device
        self.rows: list[Rows] = [{} for _ in range(plan.num_micro_batches)]
        for part, found in zip(plan.groups, self._fetch(), strict=True):
            sizes = [block.samples * sum(block.widths) for block in part.blocks]
            inverse = part.inverse.to(self._device, non_blocking=True).split(sizes)
            for block, positions in zip(part.blocks, inverse, strict=True):
                rows = found.index_select(0, positions).view(block.samples, sum(block.widths), found.shape[1])
                of_uses = zip(block.uses.items(), rows.split(block.widths, 1), strict=True)
                for (name, shape), of_use in of_uses:
                    self.rows[block.micro_batch][name] = of_use.view(*shape, found.shape[1]).requires_grad_()

    def gradients(self, scale: float, catalogue: ShardedCatalogue | None = None) -> list[RowGradients]:
        """Gradients by group times `scale`; collective. Frees the rows: a look-up has one backward pass.

        With the catalogue that the losses went over, those of its table are of all its rows.
        """
        plan, tables, rank = self._plan, self._tables, self._tables.world.rank
        dims = [group.dim for group in tables.groups]
        incoming, values = [], {}
        for number in plan.sharded:
            part = plan.groups[number]
            values[number] = torch.empty(len(part.asked) + len(part.own), dims[number], device=self._device)
            incoming.append((values[number][: len(part.asked)], without(part.received, rank)))
        wire_scale = FLOAT16_GRADIENT_SCALE if tables.gradient_format == torch.float16 else 1.0
        with self._receiving("gradients", tables.gradient_format, incoming, wire_scale) as send:
            summed = [self._summed(part, dim, scale) for part, dim in zip(plan.groups, dims, strict=True)]
            send([(summed[number], plan.groups[number].sent) for number in plan.sharded])
            for number, of_ranks in values.items():
                part = plan.groups[number]
                of_ranks[len(part.asked) :] = summed[number].split(part.sent)[rank]
        found = []
        for number, (part, group) in enumerate(zip(plan.groups, tables.groups, strict=True)):
            rows = part.rows.to(group.weight.device, non_blocking=True)
            gradient = RowGradients(rows, self._merged(part, values.get(number, summed[number])))
            if catalogue is not None and catalogue.part.shard.spec.name in group.members:
                gradient = self._of_all_rows(group, gradient, catalogue, scale)
            found.append(gradient)
        for number, group in enumerate(tables.groups):
            if (features := tables.features_of(group)) is not None:
                found[features.number] = self._of_features(features, group, found[number])
        return [
            gradient if group.trained else gradient.none() for gradient, group in zip(found, tables.groups, strict=True)
        ]

    def _of_features(self, features: RowFeatures, group: TableGroup, of_rows: RowGradients) -> RowGradients:
        """The gradient of all rows of the features of a group's rows."""
        values = features.gradient(of_rows.rows, of_rows.values)
        if not group.replicated and self._tables.world.size > 1:  # each rank knows the gradients of its own rows
            self._exchange.all_reduce("replicated", values)
        return RowGradients(torch.arange(len(values), device=features.group.weight.device), values)

    def _of_all_rows(
        self, group: TableGroup, looked_up: RowGradients, catalogue: ShardedCatalogue, scale: float
    ) -> RowGradients:
        """The gradients of all rows of a table alone in its group: of the catalogue and of what was looked up."""
        whole = catalogue.gradient.mul_(scale)
        if group.replicated:  # each rank has scored a part
            part, whole = whole, torch.zeros_like(group.weight)
            whole[catalogue.part.first : catalogue.part.stop] = part
            self._exchange.all_reduce("replicated", whole)
        whole.index_add_(0, looked_up.rows, looked_up.values)
        return RowGradients(torch.arange(len(whole), device=whole.device), whole)

    def _fetch(self) -> list[Tensor]:
        """Distinct rows of each group and a row of zeros, [u + 1, dim]."""
        plan, tables, rank = self._plan, self._tables, self._tables.world.rank
        groups = list(zip(plan.groups, tables.groups, strict=True))
        found = [torch.empty(sum(part.sent) + 1, group.dim, device=self._device) for part, group in groups]
        incoming = [(found[number][:-1], plan.groups[number].sent) for number in plan.sharded]
        with self._receiving("rows", self._row_format, incoming) as send:
            outgoing = []
            for number in plan.sharded:
                part, group = groups[number]
                answer = torch.empty(len(part.asked), group.dim, device=self._device)
                self._gather(group, part.asked, answer)
                outgoing.append((answer, without(part.received, rank)))
            send(outgoing)
            for (part, group), rows in zip(groups, found, strict=True):
                start = sum(part.sent[:rank])
                self._gather(group, part.own, rows[start : start + len(part.own)])
                rows[-1] = 0.0
        return found

    def _gather(self, group: TableGroup, wanted: Tensor, into: Tensor) -> None:
        """Copies the wanted rows of this rank's tensor, with what their features add."""
        group.gather(wanted, into)
        if (features := self._tables.features_of(group)) is not None:
            features.add_to(into, wanted)

    @contextmanager
    def _receiving(
        self, kind: str, wire: torch.dtype, incoming: list[Counted], scale: float = 1.0
    ) -> Iterator[Callable[[list[Counted]], None]]:
        """Exchanges rows with the other ranks, as `wire` times `scale`; `Exchange.receiving` for rows by rank.

        The body may write what no other rank sends.
        """
        world = self._tables.world
        parts = [into.split(counts) for into, counts in incoming]
        received = [
            parts[number] if into.dtype == wire else torch.empty_like(into, dtype=wire).split(counts)
            for number, (into, counts) in enumerate(incoming)
        ]
        with self._exchange.receiving(kind, received) as send:
            yield lambda outgoing: send(
                [(rows if scale == 1 else rows * scale).to(wire).split(counts) for rows, counts in outgoing]
            )
        for into, sent in zip(parts, received, strict=True):
            if sent is not into:
                for rank in range(world.size):
                    if rank != world.rank:
                        into[rank].copy_(sent[rank])
                        if scale != 1:
                            into[rank].div_(scale)

    def _summed(self, part: GroupPlan, dim: int, scale: float) -> Tensor:
        """The gradients of the uses, summed per distinct row and scaled, [u, dim]."""
        gradients = [self._of_block(block, dim) for block in part.blocks]
        merge = part.merge.to(self._device)
        if not gradients:
            gradients = [torch.zeros(0, dim, device=self._device)]
        uses = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
        summed = merge_rows(uses, merge.order, merge.starts)
        return summed if scale == 1 else summed.mul_(scale)

    def _of_block(self, block: UseBlock, dim: int) -> Tensor:
        """The gradients of its uses in the order of their ids, [n, dim]; zeros for what no loss used."""
        found = [self.rows[block.micro_batch].pop(name) for name in block.uses]
        gradients = [
            (torch.zeros_like(rows) if rows.grad is None else rows.grad).reshape(block.samples, width, dim)
            for rows, width in zip(found, block.widths, strict=True)
        ]
        return (gradients[0] if len(gradients) == 1 else torch.cat(gradients, dim=1)).reshape(-1, dim)

    def _merged(self, part: GroupPlan, values: Tensor) -> Tensor:
        """The gradients of all ranks, summed per row of `part.rows`."""
        if part.placement == "sharded":
            assert part.owner_merge is not None
            merge = part.owner_merge.to(self._device)
            return merge_rows(values, merge.order, merge.starts)
        if part.placement == "replicated":
            assert part.in_union is not None
            summed = values.new_zeros(len(part.rows), values.shape[1])
            summed.index_copy_(0, part.in_union.to(self._device, non_blocking=True), values)
            self._exchange.all_reduce("replicated", summed)
            return summed
        return values


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
