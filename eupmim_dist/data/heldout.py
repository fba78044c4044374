"""Users to rank the catalogue for: their history, what they have seen, what they will take.

B users of this rank's part of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.data.batch import Batch, histories
from eupmim_dist.data.blocks import block_range, spans
from eupmim_dist.data.store import InteractionStore


@dataclass(frozen=True)
class Ragged:
    """Items of each of B users as flat pairs."""

    user: Tensor  # int64 [n], position in the batch
    item: Tensor  # int64 [n]

    @classmethod
    def of(cls, items: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> "Ragged":
        """items[start:stop] of each user, in that order."""
        user, places = spans(starts, stops)
        return cls(torch.from_numpy(user), torch.from_numpy(items[places].astype(np.int64)))

    def distinct(self, num_item_rows: int) -> "Ragged":
        """The pairs ascending by user and item, without repeats."""
        keys = self.keys(num_item_rows).unique()
        return Ragged(keys // num_item_rows, keys % num_item_rows)

    def keys(self, num_item_rows: int) -> Tensor:
        """One int64 per pair, in their order."""
        return self.user * num_item_rows + self.item


@dataclass(frozen=True)
class HeldOut:
    """One rank's users of a chunk. `seen` is all that came before the cut, oldest first, not only the last L items;
    targets are distinct. `negatives`: items that each has not had, in no order that means anything, where the store
    has some."""

    users: np.ndarray  # int64 [B], NO_ROW for somebody who is not in the store
    ask: Callable[[], Batch]
    seen: Ragged
    targets: Ragged
    negatives: Ragged | None = None

    def __len__(self) -> int:
        return len(self.users)

    @cached_property
    def batch(self) -> Batch:
        """What a model reads of them, made when somebody asks for it."""
        return self.ask()

    def last_seen(self, number: int) -> Tensor:
        """The last items before the cut, oldest first, NO_ROW on the right: int64 [B, number]."""
        counts = torch.bincount(self.seen.user, minlength=len(self))
        return histories(self.seen.item.numpy(), counts.cumsum(0) - counts, counts, number)


ToRank = Callable[[np.ndarray, np.ndarray], Batch]
"""Users and their cuts -> the batch to rank for, as the task has it."""


class HeldOutUsers:
    """Users of a split in chunks; each chunk is cut over the ranks, so each user belongs to one rank.

    `group` users of a chunk, counted from its first, are never parted.
    """

    def __init__(
        self,
        store: InteractionStore,
        split: str,
        users: np.ndarray,
        to_rank: ToRank,
        *,
        chunk_size: int,
        rank: int = 0,
        world_size: int = 1,
        group: int = 1,
    ) -> None:
        self.store, self.split, self.users, self.group = store, split, users, group
        self.to_rank, self.chunk_size = to_rank, chunk_size
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Number of chunks, the same on every rank."""
        return -(-len(self.users) // self.chunk_size)

    def chunk(self, index: int) -> HeldOut:
        """This rank's part of a chunk; it may be empty."""
        chosen = self._chosen(index)
        first, last = grouped_range(len(chosen), self.group, self.rank, self.world_size)
        users = chosen[first:last]
        cuts, ends = self.store.evaluation_window(users, self.split)
        return held_out(self.store, users, cuts, ends, self.to_rank)

    def block(self, index: int) -> int:
        """The most users that any rank has of a chunk."""
        return grouped_range(len(self._chosen(index)), self.group, 0, self.world_size)[1]

    def _chosen(self, index: int) -> np.ndarray:
        return self.users[index * self.chunk_size : (index + 1) * self.chunk_size]


def grouped_range(total: int, group: int, rank: int, world_size: int) -> tuple[int, int]:
    """First and past-the-last of a rank's part, in whole groups of `group` but for the very last one."""
    first, stop = block_range(-(-total // group), rank, world_size)
    return min(first * group, total), min(stop * group, total)


def held_out(
    store: InteractionStore, users: np.ndarray, cuts: np.ndarray, ends: np.ndarray, to_rank: ToRank
) -> HeldOut:
    """Users [B] with their history before cuts [B] and their targets from there to ends [B]."""
    starts = store.offsets[users].astype(np.int64)
    negatives = None
    if store.negatives is not None:
        ends_of_rows = (users + 1) * store.negatives.shape[1]
        negatives = Ragged.of(store.negatives.reshape(-1), ends_of_rows - store.negatives.shape[1], ends_of_rows)
    return HeldOut(
        users=users,
        ask=partial(to_rank, users, cuts),
        seen=Ragged.of(store.items, starts, starts + cuts),
        targets=Ragged.of(store.items, starts + cuts, starts + ends).distinct(store.num_item_rows),
        negatives=negatives,
    )
