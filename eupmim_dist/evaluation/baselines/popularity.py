"""Popularity: everybody gets the items with the most training interactions."""

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.heldout import HeldOut
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.evaluation.baselines.training_data import training_interactions
from eupmim_dist.evaluation.topn import Scorer
from eupmim_dist.parallel.world import World


class Popularity(Scorer):
    def __init__(self, store: InteractionStore, history_length: int, world: World) -> None:
        _, items = training_interactions(store)
        counts = np.bincount(items, minlength=store.num_item_rows)
        first, last = block_range(store.num_item_rows, world.rank, world.size)
        self.item_ids = torch.arange(first, last, device=world.device)
        self.device = world.device
        # float64 counts every interaction exactly
        self.counts = torch.from_numpy(counts[first:last]).double().to(world.device)

    def query(self, users: HeldOut) -> Tensor:
        return torch.zeros(len(users.batch.user), 1, device=self.device)

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        return self.counts[start:stop].repeat(len(query), 1, 1)
