"""Popularity: everybody gets the items with the most training interactions."""

from typing import Literal

import torch
from torch import Tensor

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.heldout import HeldOut
from eupmim_dist.data.training_data import item_counts
from eupmim_dist.evaluation.scorers.interface import Ranking, Scorer


class PopularityConfig(ScorerSection):
    name: Literal["popularity"] = "popularity"
    """What ranks the catalogue."""


class Popularity(Scorer):
    def __init__(self, config: PopularityConfig, ranking: Ranking) -> None:
        store, world = ranking.store, ranking.world
        counts = item_counts(store)
        first, last = block_range(store.num_item_rows, world.rank, world.size)
        self.item_ids = torch.arange(first, last, device=world.device)
        self.device = world.device
        # float64 counts every interaction exactly
        self.counts = torch.from_numpy(counts[first:last]).double().to(world.device)

    def query(self, users: HeldOut) -> Tensor:
        return torch.zeros(len(users), 1, device=self.device)

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        return self.counts[start:stop].repeat(len(query), 1, 1)

    def exact(self, query: Tensor, positions: Tensor) -> Tensor:
        return self.counts[positions]


SCORER = Registered(PopularityConfig, Popularity)
