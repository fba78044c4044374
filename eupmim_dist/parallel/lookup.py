"""The rows of one step: fetched from the ranks that hold them, and their gradients brought back there.

n uses on this rank, u distinct rows among them. Both ways lead over the levels of the route (route.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eupmim_dist.models.interface import Rows
from eupmim_dist.parallel.catalogue import ShardedCatalogue
from eupmim_dist.parallel.exchange import Exchange
from eupmim_dist.parallel.features import RowFeatures
from eupmim_dist.parallel.merge import merge_rows
from eupmim_dist.parallel.placement import TableGroup
from eupmim_dist.parallel.plan import GroupPlan, Plan, UseBlock, without
from eupmim_dist.parallel.propagation import LeftOut

if TYPE_CHECKING:
    from eupmim_dist.parallel.sharded import ShardedTables

FLOAT16_GRADIENT_SCALE = 4096.0
"""Gradients of a mean over a batch are small: sent as float16 they are multiplied by this, to reach 1.5e-11 to 16."""


Counted = tuple[Tensor, list[int]]
"""Rows, and how many of them belong to each rank, in their order."""


@dataclass(frozen=True)
class RowGradients:
    """Gradients of the touched rows of one group, summed over every use of a row on every rank."""

    rows: Tensor  # int64 [k] ascending, distinct rows of the group's tensor, on its device
    values: Tensor  # float32 [k, dim], on the ranks' device

    def none(self) -> RowGradients:
        """Of no row."""
        return RowGradients(self.rows[:0], self.values[:0])


class Lookup:
    """The rows of one step: `rows[micro_batch][use]` has the shape of the ids plus the table's width.

    They are leaves of autograd, and zero where the id is NO_ROW. After `backward` of a loss of each micro-batch,
    `gradients` brings their gradients to the owners.
    """

    def __init__(
        self,
        tables: ShardedTables,
        plan: Plan,
        row_format: torch.dtype,
        exchange: Exchange,
        left_out: LeftOut | None = None,
    ) -> None:
        """`left_out` are the edges that the rows were propagated without."""
        self._tables, self._plan, self._row_format, self._exchange = tables, plan, row_format, exchange
        self._left_out = left_out
        self._propagated = tables.propagation is not None and tables.propagation.there
        self._device = tables.world.device
        self.rows: list[Rows] = [{} for _ in range(plan.num_micro_batches)]
        fetched = self._fetched(0)
        for number, part in enumerate(plan.groups):
            found = fetched[number]
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
        plan, tables = self._plan, self._tables
        summed = self._brought(plan.num_levels - 1, scale)
        found = []
        for number, (part, group) in enumerate(zip(plan.groups, tables.groups, strict=True)):
            rows = part.rows.to(group.weight.device, non_blocking=True)
            gradient = RowGradients(rows, self._of_all_ranks(part, summed[number]))
            if catalogue is not None and catalogue.part.shard.spec.name in group.members:
                gradient = self._of_all_rows(group, gradient, catalogue, scale)
            found.append(gradient)
        if self._propagated:
            self._of_learnt_rows(found)
        for number, group in enumerate(tables.groups):
            if (features := tables.features_of(group)) is not None:
                found[features.number] = self._of_features(features, group, found[number])
        return [
            gradient if group.trained else gradient.none() for gradient, group in zip(found, tables.groups, strict=True)
        ]

    def _of_learnt_rows(self, found: list[RowGradients]) -> None:
        """Has gradients of propagated rows followed by those of the rows that these are made of: of all rows."""
        tables, blocks = self._tables, {}
        assert tables.propagation is not None, "rows have been propagated"
        tables.propagation.drop()  # what they were made of is about to move
        for table, part in tables.propagated.items():
            gradient = found[tables.number_of(table)]
            whole = torch.zeros_like(part.shard.weight).index_copy_(0, gradient.rows, gradient.values)
            blocks[table] = whole[part.first : part.stop]
        for table, values in tables.propagation.propagated(blocks, self._exchange, self._left_out).items():
            rows = torch.arange(len(values), device=values.device)
            found[tables.number_of(table)] = RowGradients(rows, values)

    def _of_features(self, features: RowFeatures, group: TableGroup, of_rows: RowGradients) -> RowGradients:
        """The gradient of all rows of the features of a group's rows."""
        values = features.gradient(of_rows.rows, of_rows.values)
        if not group.replicated and self._tables.world.size > 1:  # each rank knows the gradients of its own rows
            self._tables.add_up(values)
        return RowGradients(torch.arange(len(values), device=features.group.weight.device), values)

    def _of_all_rows(
        self, group: TableGroup, looked_up: RowGradients, catalogue: ShardedCatalogue, scale: float
    ) -> RowGradients:
        """The gradients of all rows of a table alone in its group: of the catalogue and of what was looked up."""
        whole = catalogue.gradient.mul_(scale)
        if group.replicated:  # each rank has scored a part
            part, whole = whole, torch.zeros_like(group.weight)
            whole[catalogue.part.first : catalogue.part.stop] = part
            self._tables.add_up(whole)
        whole.index_add_(0, looked_up.rows, looked_up.values)
        return RowGradients(torch.arange(len(whole), device=whole.device), whole)

    def _fetched(self, level: int) -> dict[int, Tensor]:
        """By group the distinct rows that this rank wants at a level and a row of zeros, [u + 1, dim] at the first."""
        plan, tables, rank = self._plan, self._tables, self._tables.world.rank
        hops = {number: part.hops[level] for number, part in enumerate(plan.groups) if level < len(part.hops)}
        found = {
            number: torch.empty(sum(hop.sent) + 1, tables.groups[number].dim, device=self._device)
            for number, hop in hops.items()
        }
        if not found:  # below the last level
            return found
        incoming = [(found[number][:-1], hops[number].sent) for number in plan.sharded]
        with self._receiving("rows", self._row_format, incoming) as send:
            deeper = self._fetched(level + 1)
            outgoing = []
            for number in plan.sharded:
                hop = hops[number]
                answer = torch.empty(len(hop.asked), tables.groups[number].dim, device=self._device)
                self._copy(number, deeper, hop.asked, answer)
                outgoing.append((answer, without(hop.received, rank)))
            send(outgoing)
            for number, hop in hops.items():
                start = sum(hop.sent[:rank])
                self._copy(number, deeper, hop.own, found[number][start : start + len(hop.own)])
                found[number][-1] = 0.0
        return found

    def _copy(self, number: int, deeper: dict[int, Tensor], wanted: Tensor, into: Tensor) -> None:
        """Copies a group's rows that have come from a deeper level, or, at the last one, this rank's own."""
        if number in deeper:
            torch.index_select(deeper[number], 0, wanted.to(into.device, non_blocking=True), out=into)
        else:
            self._gather(self._tables.groups[number], wanted, into)

    def _gather(self, group: TableGroup, wanted: Tensor, into: Tensor) -> None:
        """Copies the wanted rows of this rank's tensor, with what their features add, or as they are propagated."""
        tables, table = self._tables, next(iter(group.members))
        if self._propagated and table in tables.propagated:
            assert tables.propagation is not None, "rows have been propagated"
            torch.index_select(tables.propagation.held(table), 0, wanted.to(into.device, non_blocking=True), out=into)
            return
        group.gather(wanted, into)
        if (features := tables.features_of(group)) is not None:
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

    def _brought(self, level: int, scale: float) -> list[Tensor]:
        """Each group's gradients summed by the ranks that are asked for the rows at a level; by this one before any."""
        plan, tables, rank = self._plan, self._tables, self._tables.world.rank
        dims = [group.dim for group in tables.groups]
        if level < 0:
            return [self._summed(part, dim, scale) for part, dim in zip(plan.groups, dims, strict=True)]
        hops = {number: plan.groups[number].hops[level] for number in plan.sharded}
        values = {
            number: torch.empty(len(hop.asked) + len(hop.own), dims[number], device=self._device)
            for number, hop in hops.items()
        }
        incoming = [(values[n][: len(hop.asked)], without(hop.received, rank)) for n, hop in hops.items()]
        wire_scale = FLOAT16_GRADIENT_SCALE if tables.gradient_format == torch.float16 else 1.0
        with self._receiving("gradients", tables.gradient_format, incoming, wire_scale) as send:
            summed = self._brought(level - 1, scale)
            send([(summed[number], hop.sent) for number, hop in hops.items()])
            for number, hop in hops.items():
                values[number][len(hop.asked) :] = summed[number].split(hop.sent)[rank]
        for number, hop in hops.items():
            assert hop.merge is not None
            merge = hop.merge.to(self._device)
            summed[number] = merge_rows(values[number], merge.order, merge.starts)
        return summed

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

    def _of_all_ranks(self, part: GroupPlan, summed: Tensor) -> Tensor:
        """The gradients of `part.rows`, of those that this rank has summed."""
        if part.in_union is None:
            return summed
        union = summed.new_zeros(len(part.rows), summed.shape[1])
        union.index_copy_(0, part.in_union.to(self._device, non_blocking=True), summed)
        self._tables.add_up(union)
        return union
