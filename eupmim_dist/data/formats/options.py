"""What `prepare` may be told about a source; a format says which of it applies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Column names and preparation rules; None (or no attributes): not given.

    `min_count`: items, and users, need as many interactions. `seed`: of the shuffle before a split by user.
    `separator` and `encoding` of csv, `time_format` as strptime has it. `trim`: blanks around values are dropped.
    `where`: conditions that a row has to meet, such as `rating>=4`. `skip_bad`: rows that are bad are left out.
    `negatives_seed` and `negatives_rule` (negatives.py) of elmrec.
    """

    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    attributes: tuple[str, ...] = ()
    title_column: str | None = None
    min_count: int | None = None
    split: str | None = None
    seed: int | None = None
    separator: str | None = None
    encoding: str | None = None
    time_format: str | None = None
    trim: bool = False
    where: tuple[str, ...] = ()
    skip_bad: bool = False
    negatives_seed: int | None = None
    negatives_rule: str | None = None


OF_ELMREC = ("negatives_seed", "negatives_rule")
"""The others are those of tables."""
