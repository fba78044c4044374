"""What timestamps tell: ties, whose order is chance, and training that knows what came later."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from eupmim_dist.auditing.findings import Finding, Group, graded, how_many, percent, share_of
from eupmim_dist.auditing.reading import Block, ItemCounts, Targets, distinct
from eupmim_dist.data.store import InteractionStore

LOOK_TIES, BAD_TIES = 0.05, 0.5
"""Of pairs of neighbours. Once most are ties, there is no order for a sequence model to learn."""
LOOK_CUT, BAD_CUT = 0.05, 0.5
"""Of held-out users; for them it is chance what is history and what is target."""
BY_ID = 0.2
"""Of pairs of ties of different items, the share in rising order, away from one half: chance stays near it, and a file
that was sorted by user, time and item is far off."""
SURE = 3.0
"""Standard errors that it must be off, too."""
LOOK_LATER = 0.01
"""Of training interactions. Never worse than `look`: every split by user or by each user's last items has this, and
figures on it are comparable with others on the same split."""
LOOK_FUTURE, BAD_FUTURE = 0.01, 0.1
"""Of targets that training knows from the future alone, as of cold ones, which they would be in service."""
MIXED_UNITS = 100
"""Latest time over earliest: in one unit since 1970 it is 2 or so, of seconds and milliseconds 1000."""
UNITS = ((1e8, 1), (1e11, 10**3), (1e14, 10**6), (1e17, 10**9))
"""From which time on, up to the next, it is taken for 1/n seconds since 1970."""


class Times:
    def __init__(self, store: InteractionStore, targets: Targets, counts: ItemCounts) -> None:
        self._store, self._targets, self._counts = store, targets, counts
        self._ties = self._pairs = self._longest_run = self._later = self._train = 0
        self._tied_users = self._rising = self._moving = 0
        self._first: int | None = None
        self._last = self._last_train = np.iinfo(np.int64).min
        self._first_known = np.full(store.num_item_rows, np.iinfo(np.int64).max)
        self._median = None if targets.time is None or not len(targets) else float(np.median(targets.time))

    def see(self, block: Block) -> None:
        times = block.times
        if times is None or not len(times):
            return
        within = block.position[1:] > 0
        ties = within & (times[1:] == times[:-1])
        self._rising += how_many(block.items[1:][ties] > block.items[:-1][ties])
        self._moving += how_many(block.items[1:][ties] != block.items[:-1][ties])
        self._ties += how_many(ties)
        self._pairs += how_many(within)
        ends = np.flatnonzero(np.concatenate([[True], ~ties, [True]]))  # of runs of equal times of one user
        self._longest_run = max(self._longest_run, int(np.diff(ends).max()))
        self._tied_users += len(distinct(block.user[1:][ties]))
        self._first = int(times.min()) if self._first is None else min(self._first, int(times.min()))
        self._last = max(self._last, int(times.max()))
        trained = times[block.train]
        self._train += len(trained)
        self._last_train = max(self._last_train, int(trained.max(initial=self._last_train)))
        np.minimum.at(self._first_known, block.items[block.train], trained)
        if self._median is not None:
            self._later += how_many(trained > self._median)

    def group(self) -> Group:
        title = "Is the order real, and does training know the future?"
        if self._first is None:
            none = Finding(
                *("timestamps", "timestamps", "none", None, "look"),
                "the order is that of the source; leaks in time cannot be looked for",
            )
            return Group("time", title, [none])
        found = [self._range(), *self._tied()]
        return Group("time", title, [*found, *self._future()] if len(self._targets) else found)

    def _range(self) -> Finding:
        first, last = self._first or 0, self._last
        mixed = last > MIXED_UNITS * max(first, 1)
        alike = first == last
        dates = [_date(first), _date(last)]
        meaning = f"{dates[0]} to {dates[1]}" if all(dates) and not mixed else f"{first} to {last}"
        if mixed or alike:
            meaning += "; all are the same" if alike else "; are there two units, or zeros for unknown times?"
        return Finding(
            *("timestamps", "timestamps", "yes", None, "bad" if alike else "look" if mixed else "ok"),
            meaning,
            {"first": first, "last": last},
        )

    def _tied(self) -> list[Finding]:
        share, held = share_of(self._ties, self._pairs), self._targets
        cuts = (held.starts + held.cuts)[held.cuts > 0]
        times = self._store.timestamps
        assert times is not None
        cut = share_of(how_many(times[cuts] == times[cuts - 1]), len(held.users))
        of_users = percent(share_of(self._tied_users, how_many(np.diff(self._store.offsets))))
        return [
            Finding(
                *("tied_pairs", "neighbours at one time", percent(share), share),
                graded(share, LOOK_TIES, BAD_TIES),
                f"{of_users} of users; up to {self._longest_run} at once, in an order by chance"
                if self._ties
                else "every user's order is certain",
                {"ties": self._ties, "longest_run": self._longest_run, "users": self._tied_users},
            ),
            self._tie_order(),
            Finding(
                *("tied_cuts", f"{held.split} users cut in a tie", percent(cut), cut),
                graded(cut, LOOK_CUT, BAD_CUT),
                "what is history and what is target is chance" if cut else "history is before the targets",
            ),
        ]

    def _tie_order(self) -> Finding:
        rising = share_of(self._rising, self._moving) if self._moving else 0.5
        away = abs(rising - 0.5)
        by_id = away > BY_ID and away > SURE * 0.5 / np.sqrt(self._moving)
        meaning = "ties are in the order of the ids, which tells what is next: break them by chance"
        return Finding(
            *("tie_order", "ties in the order of ids", percent(rising), rising, "bad" if by_id else "ok"),
            meaning if by_id else "50 % is chance",
            {"pairs": self._moving},
        )

    def _future(self) -> list[Finding]:
        held = self._targets
        assert held.time is not None
        later = share_of(self._later, self._train)
        before_end = share_of(how_many(held.time < self._last_train), len(held))
        known = self._first_known[held.item]
        trained = self._counts.train[held.item] > 0
        future = share_of(how_many(trained & (known > held.time)), len(held))
        return [
            Finding(
                *("training_after_targets", "training after the targets", percent(later), later),
                graded(later, LOOK_LATER),
                f"{percent(before_end)} of targets precede its end: a service would know less"
                if later
                else "training is in the past of what is held out",
                {"targets_before_training_ends": before_end, "median_target_time": self._median},
            ),
            Finding(
                *("targets_known_later", "targets known only later", percent(future), future),
                graded(future, LOOK_FUTURE, BAD_FUTURE),
                "nobody had taken the item yet: in service it would be new" if future else "all were known by then",
            ),
        ]


def _date(time: int) -> str | None:
    """The day of a time since 1970, in whichever unit makes it a likely one; None if none does."""
    per_second = next((per for least, per in reversed(UNITS) if time >= least), None)
    if per_second is None or time >= 1e20:
        return None
    try:
        return datetime.fromtimestamp(time / per_second, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return None
