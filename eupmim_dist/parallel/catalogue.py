"""The item table as a loss over all items sees it: each rank its own rows, the queries of all ranks.

W ranks, R = W * capacity queries of all ranks, n rows of this rank, D dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.data.blocks import block_range
from eupmim_dist.objectives.interface import Catalogue
from eupmim_dist.parallel import collectives
from eupmim_dist.parallel.features import RowFeatures
from eupmim_dist.parallel.placement import Shard
from eupmim_dist.parallel.propagation import GraphPropagation
from eupmim_dist.parallel.world import World

BLOCK = 1 << 16
"""Rows at a time that features are added to: what they take beside the rows stays small, also where these are many."""


class ScoredRows:
    """Which rows of a table a rank scores: its shard or, of a table that all hold, a block as large as the others'."""

    def __init__(
        self,
        shard: Shard,
        world: World,
        features: RowFeatures | None = None,
        propagation: GraphPropagation | None = None,
    ) -> None:
        self.shard, self.world, self.features, self.propagation = shard, world, features, propagation
        whole = shard.replicated and world.size > 1
        self.first, self.stop = (
            block_range(len(shard.weight), world.rank, world.size) if whole else (0, len(shard.weight))
        )
        ids, places = shard.ids()[self.first : self.stop].sort()
        self.ids, self.places = ids.to(world.device), places.to(world.device)
        padding = shard.spec.padding_row
        found = (ids == padding).nonzero().flatten().tolist() if padding is not None else []
        self.padding: int | None = int(places[found[0]]) if found else None
        """Its row of `rows`, if this rank has it."""

    def rows(self) -> Tensor:
        """As they are scored, [n, D], where the table lies."""
        if self.propagation is None:
            return self.learnt()
        return self.propagation.held(self.shard.spec.name)[self.first : self.stop]

    def learnt(self) -> Tensor:
        """As they are before any propagation: the rows themselves, or with features a copy."""
        rows = self.shard.weight[self.first : self.stop]
        if self.features is None:
            return rows
        found = torch.empty_like(rows)
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK].to(self.world.device, copy=True)
            first = self.first + start
            self.features.add_to(part, torch.arange(first, first + len(part), device=part.device))
            found[start : start + BLOCK] = part
        return found


class ShardedCatalogue(Catalogue):
    """A table's rows as a leaf of autograd; after the backward passes of a step, `gradient` is that of this rank's."""

    def __init__(self, part: ScoredRows) -> None:
        self.part, self.world = part, part.world
        self.rows = part.rows().detach().requires_grad_()

    @property
    def gradient(self) -> Tensor:
        """[n, D]."""
        return torch.zeros_like(self.rows) if self.rows.grad is None else self.rows.grad

    def blocks(self, most: int) -> list[Tensor]:
        number, padding = len(self.rows), self.part.padding
        spans = [(0, number)] if padding is None else [(0, padding), (padding, padding + 1), (padding + 1, number)]
        sizes, kept = [], []
        for first, stop in spans:
            for start in range(first, stop, most):
                sizes.append(min(most, stop - start))
                kept.append(start != padding)
        found = self.rows.split(sizes)  # one node of autograd, however many blocks
        return [block for block, wanted in zip(found, kept, strict=True) if wanted]

    def rows_of(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        part = self.part
        if not len(part.ids):
            return ids.new_zeros(len(ids), self.rows.shape[1], dtype=self.rows.dtype), torch.zeros_like(ids).bool()
        place = torch.searchsorted(part.ids, ids).clamp(max=len(part.ids) - 1)
        here = part.ids[place] == ids
        if part.shard.spec.padding_row is not None:
            here &= ids != part.shard.spec.padding_row
        return F.embedding(part.places[place], self.rows) * here[:, None], here

    def gather(self, values: Tensor, capacity: int) -> Tensor:
        missing = capacity - len(values)
        if missing:
            values = torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
        return collectives.gather(values, self.world)

    def own(self, gathered: Tensor, number: int) -> Tensor:
        first = self.world.rank * (len(gathered) // self.world.size)
        return gathered[first : first + number]

    def logsumexp(self, values: Tensor) -> Tensor:
        return collectives.logsumexp(values, self.world)

    def sum(self, values: Tensor) -> Tensor:
        return collectives.total(values, self.world)
