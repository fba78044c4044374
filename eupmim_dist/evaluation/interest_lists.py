"""A list of its own for each interest of a user.

G queries, b users, S = K interests and lists, N items each, D dim.
"""

import torch
from torch import Tensor

from eupmim_dist.evaluation.scorers.interests import InterestScorer
from eupmim_dist.models.interface import ITEM_TABLE


class InterestListScorer(InterestScorer):
    """By the dot products with one interest alone: the K lists of a user, merged, are his one list of the best."""

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        return query @ self.weight.index_select(0, self.rows[start:stop]).to(query.device).T

    def _exact_part(self, query: Tensor, positions: Tensor) -> Tensor:
        rows = self.weight[self.rows[positions.to(self.rows.device)]].to(query.device).double()  # [G, S, n, D]
        return (rows @ query.double()[..., None])[..., 0]

    def served(self, ranked: Tensor) -> tuple[Tensor, Tensor]:
        """Of items [b, S, N], each list for its own interest: the dot products, and the interest; [b, S, N] each."""
        rows = self.tables.lookup({"ranked": (ITEM_TABLE, ranked.clamp(min=0))}).rows[0]["ranked"]  # [b, S, N, D]
        scores = (rows @ self.interests[..., None])[..., 0]
        return scores, torch.arange(ranked.shape[1], device=scores.device)[:, None].expand_as(scores)
