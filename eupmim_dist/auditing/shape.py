"""How much data there is, how it is spread over users and items, and what comes twice."""

from __future__ import annotations

import numpy as np

from eupmim_dist.auditing.findings import Finding, Group, graded, how_many, percent, share_of
from eupmim_dist.auditing.reading import Block, ItemCounts, distinct
from eupmim_dist.data.splits import NO_SPLIT
from eupmim_dist.data.store import InteractionStore

FEW = 5
"""Interactions below which an item's vector stays near where it began."""
LOOK_FEW = 0.25
"""Of items with so few: then a good part of the catalogue is noise."""
LOOK_UNTRAINED = 0.05
"""Of items that training never sees: rows that stay as they were drawn and are ranked all the same."""
LOOK_GINI = 0.9
"""Here the head has nearly all; MovieLens-1M has 0.60. A figure is then mostly one of the popular items."""
LOOK_TOP = 0.5
"""Of interactions, held by a hundredth of the items."""
LOOK_NO_SPLIT = 0.05
"""Of users, in no split: too short, most of all."""
LOOK_REPEATS = 0.01
"""Of interactions: by then people come back to items, or events are logged twice."""
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


class Shape:
    def __init__(self, store: InteractionStore, counts: ItemCounts) -> None:
        self._store, self._counts = store, counts
        self._in_a_row = self._repeats = self._pairs = 0

    def see(self, block: Block) -> None:
        within = block.position[1:] > 0
        self._pairs += how_many(within)
        self._in_a_row += how_many(within & (block.items[1:] == block.items[:-1]))
        self._repeats += len(block.items) - len(distinct(block.keys))

    def group(self) -> Group:
        found = [self._users(), self._items(), self._interactions(), self._lengths()]
        if len(self._store.items):
            found += [*self._spread(), *self._training(), *self._twice()]
        return Group("shape", "What is there?", found)

    def _users(self) -> Finding:
        users = self._store.num_users
        outside = how_many(self._store.split == NO_SPLIT)
        return Finding(
            *("users", "users", f"{users:,}", users, graded(share_of(outside, users), LOOK_NO_SPLIT)),
            f"{outside:,} of them in no split" if outside else "all take part",
            {"in_no_split": outside},
        )

    def _items(self) -> Finding:
        items = self._store.num_item_rows - 1
        unused = how_many(self._counts.all[1:] == 0)
        return Finding(
            *("items", "items", f"{items:,}", items, graded(share_of(unused, items), LOOK_UNTRAINED)),
            f"{unused:,} of them in no interaction" if unused else "all occur",
            {"without_interactions": unused},
        )

    def _interactions(self) -> Finding:
        count = len(self._store.items)
        density = share_of(count, self._store.num_users * (self._store.num_item_rows - 1))
        meaning = f"{percent(density)} of all pairs of user and item"
        return Finding("interactions", "interactions", f"{count:,}", count, "ok", meaning, {"density": density})

    def _lengths(self) -> Finding:
        lengths = np.diff(self._store.offsets)
        lengths = lengths[lengths > 0]
        least, low, median, high, most = np.quantile(lengths, QUANTILES).tolist() if len(lengths) else [0.0] * 5
        return Finding(
            *("median_length", "median history", f"{median:,.0f}", median, "ok"),
            f"{least:,.0f} to {most:,.0f}; 9 of 10 users: {low:,.0f} to {high:,.0f}",
            {"min": least, "p5": low, "median": median, "p95": high, "max": most},
        )

    def _spread(self) -> list[Finding]:
        counts = np.sort(self._counts.all[1:])[::-1]
        total, items = int(counts.sum()), len(counts)
        # Of the curve of Lorenz: twice the area between it and equality.
        gini = float((2 * np.arange(items, 0, -1) - items - 1) @ counts / (items * total)) if items else 0.0
        running = np.cumsum(counts)
        tenths = np.searchsorted(running, np.arange(1, 11) / 10 * total - 1e-9) + 1
        per_tenth = np.diff(np.concatenate([[0], np.minimum(tenths, items)])).tolist()
        per_decile = [share_of(part.sum(), total) for part in np.array_split(counts, 10)]
        top, tenth = (share_of(running[max(round(items * share), 1) - 1], total) for share in (0.01, 0.1))
        first, *others = (f"{number:,}" for number in per_tenth)
        return [
            Finding(
                *("gini", "Gini of item popularity", f"{gini:.2f}", gini, graded(gini, LOOK_GINI)),
                "0: all equally popular, 1: one item has all",
            ),
            Finding(
                *("top_items", "the top 1 % of items have", percent(top), top, graded(top, LOOK_TOP)),
                f"of interactions; the top 10 % have {percent(tenth)}",
                {"top_10_percent": tenth, "share_per_decile_of_items": per_decile},
            ),
            Finding(
                *("items_per_tenth", "items that have a tenth", first, per_tenth[0], "ok"),
                f"the next tenths: {' '.join(others)}",
                {"items_per_tenth": per_tenth},
            ),
        ]

    def _training(self) -> list[Finding]:
        train = self._counts.train[1:]
        untrained, few = how_many(train == 0), how_many(train < FEW)
        shares = [share_of(count, len(train)) for count in (untrained, few)]
        return [
            Finding(
                *("untrained_items", "items never in training", f"{untrained:,}", untrained),
                graded(shares[0], LOOK_UNTRAINED),
                f"{percent(shares[0])} of items; ranked by the vector they began with" if untrained else "all are seen",
            ),
            Finding(
                *("rare_items", f"items trained on < {FEW} times", f"{few:,}", few),
                graded(shares[1], LOOK_FEW),
                f"{percent(shares[1])} of items; their vectors are mostly chance" if few else "all are seen often",
            ),
        ]

    def _twice(self) -> list[Finding]:
        row, again = share_of(self._in_a_row, self._pairs), share_of(self._repeats, len(self._store.items))
        return [
            Finding(
                *("same_item_in_a_row", "same item twice in a row", percent(row), row, graded(row, LOOK_REPEATS)),
                "perhaps one event logged twice" if self._in_a_row else "never",
                {"pairs": self._in_a_row},
            ),
            Finding(
                *("repeats", "repeated interactions", percent(again), again),
                graded(again, LOOK_REPEATS),
                "strict leaves out what a user had: is that wanted?" if self._repeats else "nobody takes one twice",
                {"interactions": self._repeats},
            ),
        ]
