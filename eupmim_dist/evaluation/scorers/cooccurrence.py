"""Windowed co-occurrence: how often an item followed one of the user's last items in the training sequences.

G queries, L history.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.config.registry import Registered
from eupmim_dist.config.schema import ScorerSection
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.heldout import HeldOut
from eupmim_dist.data.training_data import training_interactions
from eupmim_dist.evaluation.scorers.interface import Ranking, Scorer

WINDOW = 10
"""An item follows another if it comes at most so many positions after it."""


class CooccurrenceConfig(ScorerSection):
    name: Literal["cooccurrence"] = "cooccurrence"
    """What ranks the catalogue."""


class Cooccurrence(Scorer):
    """Sparse counts of this rank's items after any item; a score sums over the user's last L items."""

    def __init__(self, config: CooccurrenceConfig, ranking: Ranking) -> None:
        store, world = ranking.store, ranking.world
        self.rows = store.num_item_rows
        first, last = block_range(self.rows, world.rank, world.size)
        self.item_ids = torch.arange(first, last, device=world.device)
        user, items = training_interactions(store)
        keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for distance in range(1, WINDOW + 1):
            together = user[:-distance] == user[distance:]
            earlier, later = items[:-distance][together], items[distance:][together]
            mine = (later >= first) & (later < last)
            keys, counts = _add(keys, counts, earlier[mine] * self.rows + later[mine])
        starts = np.searchsorted(keys, np.arange(self.rows + 1) * self.rows)
        self.starts = torch.from_numpy(starts).to(world.device)  # of each item's neighbours
        self.neighbours = torch.from_numpy(keys % self.rows - first).to(world.device)  # positions
        self.counts = torch.from_numpy(counts).double().to(world.device)

    def query(self, users: HeldOut) -> Tensor:
        return users.batch.history.to(self.starts.device)

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        inside = query >= 0
        user = torch.arange(len(query), device=query.device)[:, None].expand_as(query)[inside]
        first = self.starts[query[inside]]
        lengths = self.starts[query[inside] + 1] - first
        entry = torch.repeat_interleave(first - (lengths.cumsum(0) - lengths), lengths)
        entry += torch.arange(len(entry), device=query.device)
        user = torch.repeat_interleave(user, lengths)
        item = self.neighbours[entry]
        here = (item >= start) & (item < stop)
        scores = self.counts.new_zeros(len(query) * (stop - start))
        scores.index_add_(0, user[here] * (stop - start) + item[here] - start, self.counts[entry[here]])
        return scores.view(len(query), 1, stop - start)


def _add(keys: np.ndarray, counts: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of the distinct keys with one more for each of `new`; keys ascend."""
    found, extra = np.unique(new, return_counts=True)
    merged, position = np.unique(np.concatenate([keys, found]), return_inverse=True)
    total = np.bincount(position, weights=np.concatenate([counts, extra]), minlength=len(merged))
    return merged, total.astype(np.int64)


SCORER = Registered(CooccurrenceConfig, Cooccurrence)
