"""What the findings are made of: a store's users block by block, and what is held out.

n interactions, U users of a block, T targets of H users who are held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from eupmim_dist.auditing.findings import Group
from eupmim_dist.data.blocks import spans
from eupmim_dist.data.store import InteractionStore

BLOCK = 1 << 21
"""Interactions at a time: some 200 MB while they are looked at."""


def distinct(values: np.ndarray) -> np.ndarray:
    """Ascending, without repeats, of a 1-D array. `np.unique` hashes (numpy 2.3), which takes minutes of such keys."""
    ascending = np.sort(values)
    return ascending[np.concatenate([[True], ascending[1:] != ascending[:-1]])[: len(values)]]


def among(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of `values` there are in `others`, bool; both 1-D."""
    ascending = np.sort(others)
    places = np.searchsorted(ascending, values)
    return ascending[np.minimum(places, len(others) - 1)] == values if len(others) else np.zeros(len(values), bool)


@dataclass(frozen=True)
class Targets:
    """What a split holds out. `users` [H], ascending; `starts`, `cuts` and `ends` [H]: the first place of their
    interactions, and where history and targets end, counted from it. `user` [T] is a position in `users`, `place` [T]
    one in items.npy, `item` [T] and `time` [T], None without times, what lies there; all int64."""

    split: str
    users: np.ndarray
    starts: np.ndarray
    cuts: np.ndarray
    ends: np.ndarray
    user: np.ndarray
    place: np.ndarray
    item: np.ndarray
    time: np.ndarray | None

    @classmethod
    def of(cls, store: InteractionStore, split: str) -> Targets:
        users = store.users(split)
        cuts, ends = store.evaluation_window(users, split)
        starts = np.asarray(store.offsets[users])
        user, place = spans(starts + cuts, starts + ends)
        time = None if store.timestamps is None else np.asarray(store.timestamps[place])
        return cls(split, users, starts, cuts, ends, user, place, np.asarray(store.items[place], np.int64), time)

    def __len__(self) -> int:
        return len(self.item)


class Block:
    """Neighbouring users, from `first` to `last` - 1, and their n interactions, the first at place `start`."""

    def __init__(self, store: InteractionStore, targets: Targets, first: int, last: int) -> None:
        self.store, self._targets, self.first, self.last = store, targets, first, last
        offsets = np.asarray(store.offsets[first : last + 1])
        self.start, self.stop = int(offsets[0]), int(offsets[-1])
        self.offsets = offsets - offsets[0]
        """int64 [U+1], from 0."""
        self.lengths = np.diff(offsets)
        self.items = np.asarray(store.items[self.start : self.stop], dtype=np.int64)
        self.times = None if store.timestamps is None else np.asarray(store.timestamps[self.start : self.stop])

    @cached_property
    def user(self) -> np.ndarray:
        """int64 [n], from 0 in the block."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def position(self) -> np.ndarray:
        """int64 [n], from 0 for each user."""
        return np.arange(len(self.items)) - np.repeat(self.offsets[:-1], self.lengths)

    @cached_property
    def keys(self) -> np.ndarray:
        """int64 [n]: one number for each user and item."""
        return self.user * self.store.num_item_rows + self.items

    @cached_property
    def train(self) -> np.ndarray:
        """bool [n]: what training may see."""
        return self._before(self.store.train_lengths(np.arange(self.first, self.last)))

    @cached_property
    def history(self) -> np.ndarray:
        """bool [n]: what a held-out user had before the cut."""
        return self._before(self._of_held_out(self._targets.cuts))

    @cached_property
    def target(self) -> np.ndarray:
        """bool [n]: what is held out."""
        return self._before(self._of_held_out(self._targets.ends)) & ~self.history

    def _before(self, positions: np.ndarray) -> np.ndarray:
        return self.position < np.repeat(positions, self.lengths)

    def _of_held_out(self, values: np.ndarray) -> np.ndarray:
        """`values` of held-out users [H] for all users of the block; 0 for the others."""
        low, high = np.searchsorted(self._targets.users, [self.first, self.last])
        found = np.zeros(self.last - self.first, np.int64)
        found[self._targets.users[low:high] - self.first] = values[low:high]
        return found


def blocks(store: InteractionStore, targets: Targets) -> Iterator[Block]:
    """All users, some BLOCK interactions at a time."""
    first = 0
    while first < store.num_users:
        after = int(np.searchsorted(store.offsets, store.offsets[first] + BLOCK, side="right")) - 1
        last = min(max(after, first + 1), store.num_users)
        yield Block(store, targets, first, last)
        first = last


class Findings(Protocol):
    """One group of findings: it is shown every block, and then says what it found."""

    def see(self, block: Block) -> None: ...

    def group(self) -> Group: ...


class ItemCounts:
    """How often each item occurs: `all` and `train` int64 [item rows]. `first_place` int64 [item rows]: where it
    occurs first, -1 if nowhere."""

    def __init__(self, num_item_rows: int) -> None:
        self.all, self.train = np.zeros((2, num_item_rows), np.int64)
        self.first_place = np.full(num_item_rows, -1, np.int64)

    def see(self, block: Block) -> None:
        self.all += np.bincount(block.items, minlength=len(self.all))
        self.train += np.bincount(block.items[block.train], minlength=len(self.all))
        new = np.flatnonzero(self.first_place[block.items] < 0)[::-1]  # the first is written last and stays
        self.first_place[block.items[new]] = block.start + new
