"""The rows of a source that cannot be taken: how many of which kind, and where the first ones are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from eupmim_dist.errors import UserError

FIRST = 10
"""Bad rows that are told one by one; of each reason, that are kept to be."""
MOST_REASONS = 12
MEND = "mend or delete the row, or leave bad rows out with --skip-bad"

Key = tuple[int, int]  # number of the file, and of the line or row there


@dataclass(frozen=True, order=True)
class BadRow:
    key: Key
    place: str
    told: str
    """What is wrong, with the value."""

    def __str__(self) -> str:
        return f"{self.place}: {self.told}"


@dataclass
class BadRows:
    counts: Counter[str] = field(default_factory=Counter)
    """By reason."""
    first: dict[str, list[BadRow]] = field(default_factory=dict)
    mends: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, count: int, rows: Iterable[BadRow], mend: str = "") -> None:
        """`count` rows, of which the first ones, in the order of the source, are `rows`; `mend`: a better one."""
        self.counts[reason] += count
        self.mends[reason] = mend
        kept = self.first.setdefault(reason, [])
        kept.extend(row for row in rows if len(kept) < FIRST)

    def error(self, source: str) -> UserError:
        """The first ones by file and line, then counts; a single one in a line."""
        rows = sorted(row for rows in self.first.values() for row in rows)[:FIRST]
        total = self.counts.total()
        if total == 1:
            [mend] = self.mends.values()
            return UserError(f"{rows[0]}; {mend or MEND}")
        more = [f"and {total - len(rows):,} more"] if total > len(rows) else []
        reasons = [
            f"{count:,} x {reason}" + (f"; {self.mends[reason]}" if self.mends[reason] else "")
            for reason, count in self.counts.most_common(MOST_REASONS)
        ]
        if len(self.counts) > MOST_REASONS:
            reasons.append(f"and {len(self.counts) - MOST_REASONS:,} more reasons")
        head = f"{source}: {total:,} bad rows; mend or delete them, or leave them out with --skip-bad"
        return UserError(head, *map(str, rows), *more, "by reason:", *reasons)

    def told(self) -> list[str]:
        """Counts by reason, each with the first places."""
        return [
            f"{count:,} x {reason}: {', '.join(_name(row) for row in self.first[reason][:3])}{', ...' * (count > 3)}"
            for reason, count in self.counts.most_common()
        ]

    def report(self) -> dict[str, int]:
        """For the report of a store."""
        return {f"bad rows skipped: {reason}": count for reason, count in self.counts.most_common()}


def _name(row: BadRow) -> str:
    """Its place without the folder."""
    return row.place.rpartition(os.sep)[2]
