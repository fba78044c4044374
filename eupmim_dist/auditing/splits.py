"""Whether what is held out is apart from what is trained on, and what of it a model can know at all."""

from __future__ import annotations

import numpy as np
import polars as pl

from eupmim_dist.auditing.findings import Finding, Group, Verdict, graded, how_many, percent, share_of
from eupmim_dist.auditing.reading import Block, ItemCounts, Targets, among
from eupmim_dist.data.splits import NO_SPLIT, TRAIN
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.tables import read_table

FEW_USERS = 1000
"""Held-out users below which a hit rate near one half is known to no better than 0.03: two standard errors."""
LOOK_TWINS, BAD_TWINS = 1e-4, 0.01
"""Of users. Long histories are never equal by chance; of a hundredth, a model that remembers gains as much recall."""
LOOK_REPEATED, BAD_REPEATED = 0.01, 0.2
"""Of targets, which `strict` keeps no model's list free for: recall ends so far below 1."""
LOOK_COLD, BAD_COLD = 0.01, 0.1
"""The same of items that training never sees: only what an item is could tell them."""


class Splits:
    def __init__(self, store: InteractionStore, targets: Targets, counts: ItemCounts) -> None:
        self._store, self._targets, self._counts = store, targets, counts
        self._hashes = np.zeros(store.num_users, np.uint64)
        self._repeated = 0
        self._by_user = not among(targets.users, store.users("train")).any()

    def see(self, block: Block) -> None:
        self._hashes[block.first : block.last] = sequence_hashes(block)
        self._repeated += how_many(among(block.keys[block.target], block.keys[block.history]))

    def group(self) -> Group:
        found = [self._held_out(), *self._twins(), *self._repetition(), self._cold()]
        for table, who in (("users.parquet", "users"), ("items.parquet", "items")):
            found.append(self._same_names(table, who))
        return Group("splits", "Is what is held out apart from training?", found)

    def _held_out(self) -> Finding:
        users, targets = len(self._targets.users), len(self._targets)
        error = 1 / np.sqrt(users) if users else 1.0
        verdict: Verdict = "bad" if not users else "look" if users < FEW_USERS else "ok"
        return Finding(
            *("held_out_users", f"{self._targets.split} users", f"{users:,}", users, verdict),
            f"{targets:,} targets; hit rates of 0.5 are known to {error:.3f}" if users else "nothing to evaluate on",
            {"targets": targets},
        )

    def _twins(self) -> list[Finding]:
        taking_part = np.flatnonzero((self._store.split != NO_SPLIT) & (np.diff(self._store.offsets) > 0))
        hashes, split = self._hashes[taking_part], np.asarray(self._store.split[taking_part])
        _, which, times = np.unique(hashes, return_inverse=True, return_counts=True)
        twins = how_many(times[which] > 1)
        found = [
            Finding(
                *("identical_histories", "users with a double", f"{twins:,}", twins),
                graded(share_of(twins, len(hashes)), LOOK_TWINS, BAD_TWINS),
                f"{percent(share_of(twins, len(hashes)))} of users; the largest group has {times.max(initial=1):,}"
                if twins
                else "no two have the same history",
                {"users": len(hashes)},
            )
        ]
        if self._by_user:
            held = hashes[among(taking_part, self._targets.users)]
            across = how_many(among(held, hashes[split == TRAIN]))
            share = share_of(across, len(held))
            found.append(
                Finding(
                    *("identical_across_splits", "... in training", f"{across:,}", across),
                    graded(share, LOOK_TWINS, BAD_TWINS),
                    f"{percent(share)} of {self._targets.split} users were trained on under another id"
                    if across
                    else f"no {self._targets.split} user was trained on so",
                )
            )
        return found

    def _repetition(self) -> list[Finding]:
        share = share_of(self._repeated, len(self._targets))
        return [
            Finding(
                *("repeated_targets", "targets the user had before", percent(share), share),
                graded(share, LOOK_REPEATED, BAD_REPEATED),
                "strict cannot count them: see evaluation.exclude_seen" if self._repeated else "none is lost to strict",
                {"targets": self._repeated},
            )
        ]

    def _cold(self) -> Finding:
        cold = how_many(self._counts.train[self._targets.item] == 0)
        share = share_of(cold, len(self._targets))
        return Finding(
            *("cold_targets", "targets unknown to training", percent(share), share),
            graded(share, LOOK_COLD, BAD_COLD),
            "no model of ids can find them" if cold else "training knows all of them",
            {"targets": cold},
        )

    def _same_names(self, table: str, who: str) -> Finding:
        """Raw ids that differ in blanks, case or Unicode form alone."""
        names = read_table(self._store.path / table, ["id", "raw_id"]).drop_nulls("raw_id")
        split = self._store.split[names["id"].to_numpy()] if who == "users" else np.zeros(len(names), np.uint8)
        folded = pl.col("raw_id").str.normalize("NFKC").str.strip_chars().str.to_lowercase()
        groups = (
            names.with_columns(name=folded, split=pl.Series(np.asarray(split)))
            .filter(pl.col("split") != NO_SPLIT)
            .group_by("name")
            .agg(pl.len(), pl.col("split").n_unique().alias("splits"), pl.col("raw_id").min().alias("example"))
            .filter(pl.col("len") > 1)
            .sort("example")
        )
        count, across = int(groups["len"].sum()), int(groups.filter(pl.col("splits") > 1)["len"].sum())
        meaning = "none differ in blanks or case alone"
        if count:
            meaning = f"but for blanks or case; such as {groups['example'][0]!r}"
            meaning += f"; {across:,} of them in several splits" if across else ""
        return Finding(
            *(f"same_{who}", f"{who} under several ids", f"{count:,}", count),
            "bad" if across else "look" if count else "ok",
            meaning,
            {"in_several_splits": across},
        )


def sequence_hashes(block: Block) -> np.ndarray:
    """uint64 [U]: equal for users with the same items in the same order, and for no others but by an accident that is
    less likely than one in a million among a million users."""
    pairs = pl.DataFrame({"item": block.items, "position": block.position})
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(pairs.hash_rows().to_numpy())])  # wraps
    return np.diff(sums[block.offsets])
