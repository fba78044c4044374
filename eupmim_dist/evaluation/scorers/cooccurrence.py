"""Windowed co-occurrence: how often an item followed one of the user's last items in the training sequences.

G queries, L = `history`, R item rows.
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
from eupmim_dist.telemetry.progress import task_progress

WINDOW = 10
"""An item follows another if it comes at most so many positions after it."""


class CooccurrenceConfig(ScorerSection):
    name: Literal["cooccurrence"] = "cooccurrence"
    """What ranks the catalogue."""


class Cooccurrence(Scorer):
    """Sparse weights of this rank's items after any item; a score sums over the user's last L items."""

    history: int | None = 10
    counted = "what followed what"

    def __init__(self, config: ScorerSection, ranking: Ranking) -> None:
        store, world = ranking.store, ranking.world
        self.rows = store.num_item_rows
        self.first, last = block_range(self.rows, world.rank, world.size)
        self.item_ids = torch.arange(self.first, last, device=world.device)
        user, items = training_interactions(store)
        with task_progress(f"{config.name}: counting {self.counted}", is_main=world.is_main):
            keys, weights = self.weighted_pairs(user, items, last)
        self.keys = torch.from_numpy(keys).to(world.device)
        self.weights = torch.from_numpy(weights).to(world.device)  # float64

    def weighted_pairs(self, user: np.ndarray, items: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Ascending keys `earlier * R + later` of pairs whose later item is self.first..last-1, and their weights."""
        keys, counts = followers(user, items, self.rows, self.first, last)
        return keys, self.weights_of(keys, counts, items)

    def weights_of(self, keys: np.ndarray, counts: np.ndarray, items: np.ndarray) -> np.ndarray:
        """What each pair adds to a score: here how often there was one. `items` are all of the training."""
        return counts.astype(np.float64)

    def query(self, users: HeldOut) -> Tensor:
        assert self.history is not None
        return users.last_seen(self.history).to(self.keys.device)

    def scores(self, query: Tensor, start: int, stop: int) -> Tensor:
        width = stop - start
        least = query * self.rows + self.first + start  # for padding smaller than any key
        low, high = torch.searchsorted(self.keys, least), torch.searchsorted(self.keys, least + width)
        lengths, shifts = high - low, torch.arange(len(query), device=query.device)[:, None] * width - least
        scores = self.weights.new_zeros(len(query) * width)
        # One of the L items at a time: no two weights meet in a score, so that sums have one order on any device.
        for first, length, shift in zip(low.unbind(1), lengths.unbind(1), shifts.unbind(1), strict=True):
            entry = torch.repeat_interleave(first - (length.cumsum(0) - length), length)
            entry += torch.arange(len(entry), device=query.device)
            place = self.keys[entry] + torch.repeat_interleave(shift, length)
            scores.index_add_(0, place, self.weights[entry])
        return scores.view(len(query), 1, width)


def followers(user: np.ndarray, items: np.ndarray, rows: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of an item and one of first..last-1 that followed it, and how often.

    A pair is the key `earlier * R + later`; keys ascend. At its peak it holds WINDOW keys for each interaction.
    """
    keys, filled = np.empty(WINDOW * len(items), np.int64), 0
    for distance in range(1, WINDOW + 1):
        earlier, later = items[:-distance], items[distance:]
        pair = (user[:-distance] == user[distance:]) & (later >= first) & (later < last)
        found = earlier[pair] * rows + later[pair]
        keys[filled : filled + len(found)] = found
        filled += len(found)
    keys = keys[:filled]
    keys.sort()
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[:filled])
    return keys[starts], np.diff(starts, append=filled)


SCORER = Registered(CooccurrenceConfig, Cooccurrence)
