"""What makes a row of events bad, and which rows are not wanted: a number for each reason, beside the values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from eupmim_dist.data.formats import times
from eupmim_dist.data.formats.where import OF_NUMBERS, Condition
from eupmim_dist.errors import short

UNSEEN = r"[\p{Cc}\x{feff}]"
"""What no id may hold: whoever reads it does not see it."""
STRAY = r"[\x00\x{feff}]|\r(?:[^\n]|$)"
"""What no label may, which may have line ends."""
ATTRIBUTE = "attribute "
TRIM = "--trim drops blanks around values"


@dataclass(frozen=True)
class Rule:
    """A row is `bad` for a `reason`, which the value of the column `shown` tells."""

    reason: str
    bad: pl.Expr
    shown: str | None = None
    mend: str = ""


def role_of(number: int) -> str:
    """The column of a condition's values."""
    return f"where {number}"


def rules_of(names: dict[str, str], conditions: Sequence[Condition]) -> list[Rule]:
    """Of a table with the columns `names`, by role; the first rule that a row breaks counts.

    Those of the first part come before the conditions: where a row repeats the header, its values mean nothing.
    """
    texts = [pl.col(role) == name for role, name in names.items() if role != "time"]
    if "time" in names:
        texts.append(pl.col("time_text") == names["time"])
    rules = [Rule("repeats the header", pl.all_horizontal(texts).fill_null(False))]
    for number, condition in enumerate(conditions):
        if condition.operator in OF_NUMBERS:
            value = pl.col(role_of(number))
            reason = f"{short(condition.column)} is no number, which --where compares"
            rules.append(Rule(reason, condition.is_no_number(value), role_of(number)))
    for role in ("user", "item"):
        value = pl.col(role)
        rules += [
            Rule(f"{role} is missing", value.is_null()),
            # " 3" beside "3" would make two of one
            Rule(f"{role} has blanks around it", value != value.str.strip_chars(), role, TRIM),
            Rule(f"{role} holds a control character or a byte-order mark", value.str.contains(UNSEEN), role),
        ]
    for role in names:
        if role.startswith(ATTRIBUTE):
            reason = f"{short(role.removeprefix(ATTRIBUTE))} holds a NUL, a carriage return or a byte-order mark"
            rules.append(Rule(reason, pl.col(role).str.contains(STRAY), role))
    return rules


def marked(table: pl.LazyFrame, rules: Sequence[Rule], conditions: Sequence[Condition], trim: bool) -> pl.LazyFrame:
    """`table` with `reason`, the number of the rule that a row breaks, and `dropped`, that of the condition it fails.

    Null where there is none. Text that is empty is null then, as are blanks if they are to be trimmed.
    """
    texts = [name for name in table.collect_schema() if name not in times.COLUMNS]
    value = pl.col(texts).str.strip_chars() if trim else pl.col(texts)
    table = table.with_columns(pl.when(value != "").then(value))
    early = 1 + sum(condition.operator in OF_NUMBERS for condition in conditions)
    unwanted = [~condition.holds(pl.col(role_of(number))) for number, condition in enumerate(conditions)]
    is_early, is_dropped = pl.col("reason").is_not_null(), pl.col("dropped").is_not_null()
    table = table.with_columns(first_broken(rules[:early]))
    table = table.with_columns(pl.when(~is_early).then(_first(unwanted, 0)).alias("dropped"))
    late = first_broken(rules[early:], early)
    table = table.with_columns(pl.when(is_early).then("reason").when(~is_dropped).then(late).alias("reason"))
    for number, condition in enumerate(conditions):
        if condition.operator in OF_NUMBERS:  # messages show those that are none
            table = table.with_columns(pl.when(pl.col("reason") < early).then(role_of(number)).alias(role_of(number)))
        else:
            table = table.drop(role_of(number))
    return table


def first_broken(rules: Sequence[Rule], number: int = 0) -> pl.Expr:
    """The number of the first rule that a row breaks, counted from `number`; called `reason`."""
    return _first([rule.bad for rule in rules], number).alias("reason")


def _first(flags: Sequence[pl.Expr], number: int) -> pl.Expr:
    codes = [pl.when(flag).then(pl.lit(number + n, pl.UInt16)) for n, flag in enumerate(flags)]
    return pl.coalesce(pl.lit(None, pl.UInt16), *codes)


def rules_of_times(kind: times.Kind) -> list[Rule]:
    """Of a time that is not what most are."""
    text = pl.col("time_text")
    return [
        Rule("time is missing", times.is_missing()),
        Rule("time has blanks around it", text != text.str.strip_chars(), "time", TRIM),
        Rule(kind.reason, pl.lit(True), "time", "--time-format says how times are written"),
    ]
