"""Do the numbers of the items alone tell what comes next? Rules that know nothing else, judged as a model is."""

from __future__ import annotations

import numpy as np
import polars as pl

from eupmim_dist.auditing.findings import Finding, Group, Verdict, how_many, percent, share_of
from eupmim_dist.auditing.ranking import HeldOutSample, largest_ids, nearest_ids, new_ids, next_ids, smallest_ids
from eupmim_dist.auditing.reading import Block, ItemCounts, Targets
from eupmim_dist.data.store import InteractionStore

TOP_N = 10
MOST_USERS = 100_000
"""Users that the rules are judged on, drawn if more are held out: a recall of 0.01 is then known to 0.0003 or so."""
SAMPLE_SEED = 1
SURE = 3.0
"""Standard errors that a recall must lie above another to be more than chance: of five rules, one store in a hundred is
accused for nothing."""
LOOK_TIMES_CHANCE = 2.0
"""Numbers given shop by shop or year by year reach a little more than chance; from twice as much they are a pattern."""
IN_ORDER = 0.999
"""Of neighbouring ids, the share whose first appearances are in this order: 0.5 by chance, 1 if items were numbered
while the sequences were read; from here on, but for a few."""
BY_POPULARITY = 0.9
"""Rank correlation of id and number of interactions, either way, from which the numbers tell popularity."""
MEND = "prepare with --permute-items 1"


class IdRules:
    """Judges the rules on held-out users, beside chance and popularity, and looks at how the items are numbered."""

    def __init__(self, store: InteractionStore, targets: Targets, counts: ItemCounts) -> None:
        self._store, self._targets, self._counts = store, targets, counts
        self._largest = np.zeros(store.num_users, np.int64)

    def see(self, block: Block) -> None:
        some = block.lengths > 0
        if some.any():
            largest = np.maximum.reduceat(block.items, block.offsets[:-1][some])
            self._largest[block.first : block.last][some] = largest

    def group(self) -> Group:
        chosen, held_out = self._chosen(), len(self._targets.users)
        drawn = "" if len(chosen) == held_out else f", {len(chosen):,} of {held_out:,} {self._targets.split} users"
        title = f"Do item ids leak? strict recall@{TOP_N}{drawn}"
        rules = self._rules(HeldOutSample(self._store, self._targets, chosen)) if held_out else []
        return Group("ids", title, [*rules, *self._numbering()])

    def _chosen(self) -> np.ndarray:
        count = len(self._targets.users)
        if count <= MOST_USERS:
            return np.arange(count)
        return np.sort(np.random.default_rng(SAMPLE_SEED).choice(count, MOST_USERS, replace=False))

    def _rules(self, sample: HeldOutSample) -> list[Finding]:
        chance = sample.chance(TOP_N)
        popularity = float(sample.recalls(sample.better_by_count(self._counts.train), TOP_N).mean())
        largest_before = np.maximum.accumulate(np.concatenate([[0], self._largest[:-1]]))
        rules = {
            "next_ids": ("ids right after the last", next_ids),
            "nearest_ids": ("ids nearest to the last", nearest_ids),
            "new_ids": ("next ids that nobody has", new_ids(largest_before)),
            "smallest_ids": ("smallest ids", smallest_ids),
            "largest_ids": ("largest ids", largest_ids),
        }
        found = [
            _recall("chance", "random items", chance, "ok", "knowing nothing reaches this", len(sample)),
            _recall("popularity", "popularity", popularity, "ok", "what a model has to beat", len(sample)),
        ]
        for key, (what, rule) in rules.items():
            recalls = sample.recalls(rule(sample), TOP_N)
            verdict, meaning = judged(recalls, chance, popularity)
            found.append(_recall(key, what, float(recalls.mean()), verdict, meaning, len(sample)))
        return found

    def _numbering(self) -> list[Finding]:
        first, target = self._counts.first_place, self._targets
        appearing = first[first >= 0]
        ordered = share_of(how_many(np.diff(appearing) > 0), len(appearing) - 1)
        opening = share_of(how_many(first[target.item] == target.place), len(target))
        leak = ordered >= IN_ORDER and len(appearing) > 2
        meaning = "0.5 is chance"
        if leak:
            meaning = f"numbered as first seen, with what is held out: {percent(opening)} of targets open an id; {MEND}"
        correlation = rank_correlation(np.arange(1, len(first)), self._counts.all[1:])
        told = abs(correlation) >= BY_POPULARITY
        return [
            Finding(
                *("first_seen_order", "ids in order of appearance", f"{ordered:.3f}", ordered),
                *("bad" if leak else "ok", meaning, {"targets_that_open_an_id": opening}),
            ),
            Finding(
                *("popularity_order", "rank correlation id, count", f"{correlation:+.2f}", correlation),
                "look" if told else "ok",
                "ids tell popularity, with what is held out: never feed them as numbers"
                if told
                else "ids tell little of popularity",
            ),
        ]


def judged(recalls: np.ndarray, chance: float, popularity: float) -> tuple[Verdict, str]:
    """What each user's recall [H] says of a rule."""
    recall = float(recalls.mean())
    surely = recall - SURE * float(recalls.std()) / np.sqrt(len(recalls))
    times = f"{recall / chance:.0f} times chance" if chance else "above chance"
    if surely <= LOOK_TIMES_CHANCE * chance:
        too_few = recall > LOOK_TIMES_CHANCE * chance
        told = f"{times}, but {len(recalls):,} users are too few to be sure"
        return "ok", told if too_few else "no pattern in the numbers"
    if surely > popularity:
        return "bad", f"{times}, above popularity: the numbers leak; {MEND}"
    return "look", f"{times}, not above popularity"


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's; 0 where either is constant."""
    found = pl.DataFrame({"one": one, "other": other}).select(pl.corr("one", "other", method="spearman")).item()
    return float(found) if np.isfinite(found) else 0.0


def _recall(key: str, what: str, recall: float, verdict: Verdict, meaning: str, users: int) -> Finding:
    return Finding(key, what, f"{recall:.4f}", recall, verdict, meaning, {"users": users})
