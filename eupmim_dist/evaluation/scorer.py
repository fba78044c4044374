"""Scores of a trained model: interests against this rank's part of the rows of its item table.

G queries, K interests, D dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.heldout import HeldOut
from eupmim_dist.evaluation.topn import Scorer
from eupmim_dist.models.interface import Recommender
from eupmim_dist.parallel.sharded import ShardedTables

USERS_AT_A_TIME = 128
"""Users a forward pass takes: a larger batch's activations fall out of a CPU's cache."""


class InterestScorer(Scorer):
    """`per_interest`: a cosine list per interest; else one list by the best dot product over the interests."""

    def __init__(self, model: Recommender, tables: ShardedTables, per_interest: bool) -> None:
        self.model, self.tables, self.per_interest = model, tables, per_interest
        self.world = tables.world
        shard = tables.shards[model.item_table]
        ids, order = shard.ids().sort()
        if shard.replicated:  # each rank ranks a part of what all hold
            part = slice(*block_range(len(ids), self.world.rank, self.world.size))
            ids, order = ids[part], order[part]
        self.item_ids = ids.to(self.world.device)
        self.weight = shard.weight
        self.rows = order.to(shard.weight.device)  # of `weight`, by position

    def query(self, users: HeldOut) -> Tensor:
        """Interests [b, K, D]; collective."""
        batch = users.batch.to(self.world.device)
        lookup = self.tables.lookup(self.model.ids(users.batch))
        parts = []
        for start in range(0, max(len(batch.user), 1), USERS_AT_A_TIME):
            stop = start + USERS_AT_A_TIME
            rows = {name: values[start:stop] for name, values in lookup.rows[0].items()}
            parts.append(self.model.interests(rows, batch.part(start, stop)))
        return torch.cat(parts)  # not normalised: an interest's length does not change the order of its list

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        rows = self.weight.index_select(0, self.rows[start:stop]).to(query.device)
        if self.per_interest:
            return query @ F.normalize(rows, dim=-1).T
        best = query[:, 0] @ rows.T
        for interest in query.unbind(1)[1:]:
            torch.maximum(best, interest @ rows.T, out=best)
        return best[:, None]

    def exact(self, query: Tensor, positions: Tensor) -> Tensor:
        return torch.cat(
            [
                self._exact_part(*part)
                for part in zip(query.split(USERS_AT_A_TIME), positions.split(USERS_AT_A_TIME), strict=True)
            ]
        )

    def _exact_part(self, query: Tensor, positions: Tensor) -> Tensor:
        rows = self.weight[self.rows[positions.to(self.rows.device)]].to(query.device).double()  # [G, S, n, D]
        query = query.double()  # [G, K, D]
        if self.per_interest:
            return (F.normalize(rows, dim=-1) @ query[..., None])[..., 0]
        return (rows @ query[:, None].transpose(-1, -2)).amax(-1)
