"""Where an order of the items puts the targets of held-out users, without ranking anything: items are counted instead.

H users, h pairs of one and an item of his history, t pairs of one and a distinct target; M items, 1..M.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eupmim_dist.auditing.reading import Targets, distinct
from eupmim_dist.data.blocks import spans
from eupmim_dist.data.store import InteractionStore


class Unseen:
    """Counts what a user has not had, by any numbering 1..M of the items: `number` int64 [h] is what `user` had."""

    def __init__(self, user: np.ndarray, number: np.ndarray, num_item_rows: int) -> None:
        self._rows, self._had = num_item_rows, distinct(user * num_item_rows + number)

    def between(self, user: np.ndarray, low: np.ndarray | int, high: np.ndarray | int) -> np.ndarray:
        """How many of the numbers from `low` to `high` each of `user` has not had, int64 of its shape."""
        low, high = np.maximum(low, 1), np.minimum(high, self._rows - 1)
        first = np.searchsorted(self._had, user * self._rows + low)
        after = np.searchsorted(self._had, user * self._rows + high, side="right")
        return np.where(high >= low, high - low + 1 - (after - first), 0)


class HeldOutSample:
    """Some held-out users as protocol `strict` sees them: candidates are what a user has not had, targets are distinct.

    `chosen` int64 [H]: positions in `targets.users`.
    """

    def __init__(self, store: InteractionStore, targets: Targets, chosen: np.ndarray) -> None:
        self.rows = store.num_item_rows
        self.users = targets.users[chosen]
        starts, cuts, ends = targets.starts[chosen], targets.cuts[chosen], targets.ends[chosen]
        self._had_by, places = spans(starts, starts + cuts)
        self._had = np.asarray(store.items[places], np.int64)
        self.unseen = Unseen(self._had_by, self._had, self.rows)
        by, places = spans(starts + cuts, starts + ends)
        self.by, self.target = np.divmod(distinct(by * self.rows + store.items[places]), self.rows)
        """int64 [t]: whose target (0..H-1), and which item."""
        self._possible = self.unseen.between(self.by, self.target, self.target) == 1
        last = np.asarray(store.items[np.maximum(starts + cuts - 1, 0)], np.int64)
        self.last = np.where(cuts > 0, last, 0)[self.by]
        """int64 [t]: the last item of the history; 0 without one."""
        self.largest = np.zeros(len(chosen), np.int64)
        """int64 [H]: the largest id of the history."""
        np.maximum.at(self.largest, self._had_by, self._had)

    def __len__(self) -> int:
        return len(self.users)

    def recalls(self, better: np.ndarray, top_n: int) -> np.ndarray:
        """Each user's recall, float64 [H]; `better` int64 [t]: how many candidates come before each target."""
        return self._per_user(self._possible & (better < top_n))

    def chance(self, top_n: int) -> float:
        """The mean recall that random candidates are expected to have."""
        candidates = self.unseen.between(np.arange(len(self)), 1, self.rows - 1)
        return float((self._per_user(self._possible) * np.minimum(1.0, top_n / np.maximum(candidates, 1))).mean())

    def better_by_count(self, counts: np.ndarray) -> np.ndarray:
        """int64 [t]: candidates before each target where the largest of `counts` [M+1] comes first, then small ids."""
        rank = np.zeros(self.rows, np.int64)
        rank[np.argsort(-counts[1:], kind="stable") + 1] = np.arange(1, self.rows)
        ranked = Unseen(self._had_by, rank[self._had], self.rows)
        return ranked.between(self.by, 1, rank[self.target] - 1)

    def _per_user(self, counted: np.ndarray) -> np.ndarray:
        return np.bincount(self.by[counted], minlength=len(self)) / np.bincount(self.by, minlength=len(self))


def next_ids(sample: HeldOutSample) -> np.ndarray:
    """Candidates before each target of the rule `last id + 1, + 2, ...`, after the largest from 1 on; as the baseline
    next_id ranks."""
    above = sample.target > sample.last
    after = sample.unseen.between(sample.by, sample.last + 1, np.where(above, sample.target - 1, sample.rows - 1))
    return after + np.where(above, 0, sample.unseen.between(sample.by, 1, sample.target - 1))


def nearest_ids(sample: HeldOutSample) -> np.ndarray:
    """... of the rule `the nearest id to the last`, of two the smaller."""
    away = np.abs(sample.target - sample.last)
    low, high = sample.last - away, sample.last + away
    return sample.unseen.between(sample.by, low + (sample.target < sample.last), high - 1)


def smallest_ids(sample: HeldOutSample) -> np.ndarray:
    """... of the rule `the smallest id`."""
    return sample.unseen.between(sample.by, 1, sample.target - 1)


def largest_ids(sample: HeldOutSample) -> np.ndarray:
    """... of the rule `the largest id`."""
    return sample.unseen.between(sample.by, sample.target + 1, sample.rows - 1)


def new_ids(before: np.ndarray) -> Callable[[HeldOutSample], np.ndarray]:
    """... of the rule `the next ids that neither he nor a user before him has`: `before` int64 [users] is the largest
    id of the users before each."""

    def better(sample: HeldOutSample) -> np.ndarray:
        taken = np.maximum(before[sample.users], sample.largest)[sample.by]
        between = sample.unseen.between(sample.by, taken + 1, sample.target - 1)
        return np.where(sample.target > taken, between, sample.rows)

    return better
