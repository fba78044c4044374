"""Scores of a trained model: interests against the rows of its item table that this rank owns.

G queries, K interests, D dim.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.data.heldout import HeldOut
from eupmim_dist.evaluation.topn import Scorer
from eupmim_dist.models.interface import Recommender
from eupmim_dist.parallel.tables import Tables

USERS_AT_A_TIME = 128
"""Users a forward pass takes: a larger batch's activations fall out of a CPU's cache."""


class InterestScorer(Scorer):
    """`per_interest`: a cosine list per interest; else one list by the best dot product over the interests."""

    def __init__(self, model: Recommender, tables: Tables, per_interest: bool) -> None:
        self.model, self.tables, self.per_interest = model, tables, per_interest
        self.shard = tables.shards[model.item_table]
        self.first_row = self.shard.start
        self.last_row = self.shard.start + len(self.shard.weight)

    def query(self, users: HeldOut) -> Tensor:
        """Interests [b, K, D]; collective."""
        batch = users.batch.to(self.shard.weight.device)
        lookup = self.tables.lookup(self.model.ids(batch))
        parts = []
        for start in range(0, max(len(batch.user), 1), USERS_AT_A_TIME):
            stop = start + USERS_AT_A_TIME
            rows = {name: values[start:stop] for name, values in lookup.rows.items()}
            parts.append(self.model.interests(rows, batch.part(start, stop)))
        return torch.cat(parts)  # not normalised: an interest's length does not change the order of its list

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        rows = self.shard.weight[start - self.first_row : stop - self.first_row]
        if self.per_interest:
            return query @ F.normalize(rows, dim=-1).T
        best = query[:, 0] @ rows.T
        for interest in query.unbind(1)[1:]:
            torch.maximum(best, interest @ rows.T, out=best)
        return best[:, None]

    def exact(self, query: Tensor, ids: Tensor) -> Tensor:
        positions = ids - self.first_row
        return torch.cat(
            [
                self._exact_part(*part)
                for part in zip(query.split(USERS_AT_A_TIME), positions.split(USERS_AT_A_TIME), strict=True)
            ]
        )

    def _exact_part(self, query: Tensor, positions: Tensor) -> Tensor:
        rows, query = self.shard.weight[positions].double(), query.double()  # [G, S, n, D], [G, K, D]
        if self.per_interest:
            return (F.normalize(rows, dim=-1) @ query[..., None])[..., 0]
        return (rows @ query[:, None].transpose(-1, -2)).amax(-1)
