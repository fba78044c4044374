"""Users to rank the catalogue for: their history, what they have seen, what they will take.

B users of this rank's part of a chunk.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW, Batch, histories
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.store import InteractionStore


@dataclass(frozen=True)
class Ragged:
    """Items of each of B users as flat pairs."""

    user: Tensor  # int64 [n], position in the batch
    item: Tensor  # int64 [n]

    @classmethod
    def of(cls, items: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> "Ragged":
        """items[start:stop] of each user, in that order."""
        counts = stops - starts
        user = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        item = items[np.repeat(starts, counts) + within].astype(np.int64)
        return cls(torch.from_numpy(user), torch.from_numpy(item))

    def distinct(self, num_item_rows: int) -> "Ragged":
        """The pairs ascending by user and item, without repeats."""
        keys = self.keys(num_item_rows).unique()
        return Ragged(keys // num_item_rows, keys % num_item_rows)

    def keys(self, num_item_rows: int) -> Tensor:
        """One int64 per pair, in their order."""
        return self.user * num_item_rows + self.item


@dataclass(frozen=True)
class HeldOut:
    """One rank's users of a chunk. `seen` is all that came before the cut, not only the last L items; targets are
    distinct."""

    batch: Batch
    seen: Ragged
    targets: Ragged


class HeldOutUsers:
    """The users of a split in chunks; each chunk is cut over the ranks, so each user belongs to one rank."""

    def __init__(
        self,
        store: InteractionStore,
        split: str,
        *,
        history_length: int,
        zero_unseen: bool,
        min_history: int,
        chunk_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.store, self.split, self.users = store, split, store.users(split)
        self.history_length, self.min_history = history_length, min_history
        self.zero_unseen, self.chunk_size = zero_unseen, chunk_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Number of chunks, the same on every rank."""
        return -(-len(self.users) // self.chunk_size)

    def chunk(self, index: int) -> HeldOut:
        """This rank's part of a chunk; it may be empty."""
        chosen = self.users[index * self.chunk_size : (index + 1) * self.chunk_size]
        first, last = block_range(len(chosen), self.rank, self.world_size)
        users = chosen[first:last]
        cuts, ends = self.store.evaluation_window(users, self.split)
        return rank_for(self.store, users, cuts, ends, self.history_length, self.min_history, self.zero_unseen)


def rank_for(
    store: InteractionStore,
    users: np.ndarray,
    cuts: np.ndarray,
    ends: np.ndarray,
    history_length: int,
    min_history: int,
    zero_unseen: bool,
) -> HeldOut:
    """Users [B] with their history before cuts [B] and their targets from there to ends [B].

    `zero_unseen` takes a zero row for the id of a user that training never sees (design 3.2).
    """
    starts = store.offsets[users].astype(np.int64)
    trained = store.train_lengths(users) > min_history  # as the training sampler has it
    batch = Batch(
        user=torch.from_numpy(np.where(trained, users, NO_ROW) if zero_unseen else users.copy()),
        attributes=torch.from_numpy(store.attribute_values[users].astype(np.int64)),
        history=histories(store.items, torch.from_numpy(starts), torch.from_numpy(cuts), history_length),
        global_size=len(users),
    )
    return HeldOut(
        batch=batch,
        seen=Ragged.of(store.items, starts, starts + cuts),
        targets=Ragged.of(store.items, starts + cuts, starts + ends).distinct(store.num_item_rows),
    )
