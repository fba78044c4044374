"""What csv and parquet share: a table of events with named columns, checked and handed on to be numbered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.events import (
    AUTHORS_MIN_COUNT,
    AUTHORS_SEED,
    Profiles,
    dataset_from_events,
)
from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.splits import BY_USER, LEAVE_ONE_OUT, SplitRule
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, listed, short, shown

TABLE_SPLITS: dict[str, SplitRule] = {rule.name: rule for rule in (BY_USER, LEAVE_ONE_OUT)}
Locate = Callable[[int], str]  # 0-based data row -> "file:line" or "file: row n"
UNSEEN = r"[\p{Cc}\x{feff}]"
"""What no id may hold: whoever reads it does not see it."""
STRAY = r"[\x00\x{feff}]|\r(?:[^\n]|$)"
"""What no label may, which may have line ends."""


def mapped_columns(source: Path, options: Options, present: list[str]) -> dict[str, int]:
    """Which column of the source, from 0, is what: user, item, time, title and `attribute NAME` by role.

    By number, as polars takes a name such as `*` for a pattern, and some names of a file for others.

    Raises:
        UserError: an option is missing or out of range, or names a column the source has not.
    """
    if options.min_count is not None and options.min_count < 1:
        raise UserError(f"--min-count {options.min_count}: give 1 or more")
    if options.split not in (None, *TABLE_SPLITS):
        raise UserError(f"--split {short(options.split)}: give one of {', '.join(TABLE_SPLITS)}")
    if options.seed is not None and not (rule := _split_rule(options)).draws:
        raise UserError(f"--seed: {rule.name} draws nothing; leave the option out")
    roles = {"user": options.user_column, "item": options.item_column}
    for role, column in roles.items():
        if column is None:
            raise UserError(f"--{role}-column: say which column holds the {role} (there: {listed(present)})")
    roles |= {"time": options.time_column, "title": options.title_column}
    roles |= {f"attribute {name}": name for name in options.attributes}
    if len(set(options.attributes)) < len(options.attributes):
        raise UserError("--attribute: the same name is given twice")
    return {role: column_number(f"{source}:", column, present) for role, column in roles.items() if column is not None}


def column_number(where: str, column: str, present: list[str]) -> int:
    """Which of the columns `present` it is, from 0. Raises UserError, beginning with `where`, unless one is."""
    if column not in present:
        raise UserError(f"{where} no column {shown(column)}; there are {listed(present)}")
    if present.count(column) > 1:
        raise UserError(f"{where} {present.count(column)} columns called {shown(column)}; rename all but one")
    return present.index(column)


def dataset_from_table(
    table: pl.LazyFrame, source: Path, options: Options, locate: Locate, progress: OnStage
) -> Dataset:
    """Check `table` (String columns by role, but time int64 or null where it was none) and make it a dataset.

    Raises:
        UserError: an empty id or attribute, a time that is no integer, two values of one user's attribute.
    """
    columns = table.collect_schema().names()
    _check_values(table, columns, locate, progress)
    names = [column for column in columns if column.startswith("attribute ")]
    return dataset_from_events(
        table.select("user", "item", *(c for c in columns if c == "time")),
        source=source,
        progress=progress,
        profiles=_profiles(table, source, names, locate, progress) if names else None,
        titles=_titles(table, progress) if "title" in columns else None,
        min_count=AUTHORS_MIN_COUNT if options.min_count is None else options.min_count,
        until_stable=True,
        rule=_split_rule(options),
        seed=AUTHORS_SEED if options.seed is None else options.seed,
    )


def _split_rule(options: Options) -> SplitRule:
    return BY_USER if options.split is None else TABLE_SPLITS[options.split]


def _check_values(table: pl.LazyFrame, columns: list[str], locate: Locate, progress: OnStage) -> None:
    progress("checking", 0, 0)
    checks = {}
    for column in columns:
        value, name = pl.col(column), short(column.removeprefix("attribute "))
        if column == "time":
            checks["time is missing or no integer of 64 bits"] = value.is_null()
        elif column in ("user", "item"):  # " 3" beside "3" would make two of one
            bad = value.is_null() | (value == "") | (value != value.str.strip_chars())
            checks[f"{name} is missing or has blanks around it"] = bad
            checks[f"{name} holds a control character or a byte-order mark"] = value.str.contains(UNSEEN)
        elif column != "title":
            checks[f"{name} is missing"] = value.is_null() | (value == "")
            checks[f"{name} holds a NUL, a carriage return or a byte-order mark"] = value.str.contains(STRAY)
    first_rows = (
        table.with_row_index("row")
        .select(pl.col("row").filter(bad).min().alias(problem) for problem, bad in checks.items())
        .collect(engine="streaming")
        .row(0, named=True)
    )
    found = [(row, problem) for problem, row in first_rows.items() if row is not None]
    if found:
        row, problem = min(found, key=lambda entry: entry[0])
        raise UserError(f"{locate(row)}: {problem}; mend or delete the row")


def _profiles(table: pl.LazyFrame, source: Path, names: list[str], locate: Locate, progress: OnStage) -> Profiles:
    """One row a user, columns by attribute name."""
    progress("reading profiles", 0, 0)
    extremes = [part for n in names for part in (pl.col(n).min(), pl.col(n).max().alias(f"max {n}"))]
    frame = table.group_by("user").agg(extremes).collect(engine="streaming")
    for name in names:
        conflict = frame.filter(pl.col(name) != pl.col(f"max {name}"))
        if conflict.height:
            user = str(conflict["user"].min())
            rows = table.with_row_index("row").filter(pl.col("user") == user).select("row", name).collect()
            row, value = rows.filter(pl.col(name) != rows[name][0]).row(0)
            attribute = name.removeprefix("attribute ")
            raise UserError(
                f"{locate(row)}: user {short(user)} has {short(attribute)} {shown(value)}, on an earlier row "
                f"{shown(rows[name][0])}; a user has one value of an attribute"
            )
    return Profiles(source, frame.select("user", *names))


def _titles(table: pl.LazyFrame, progress: OnStage) -> pl.DataFrame:
    progress("reading titles", 0, 0)
    # Of several titles of an item any will do, but always the same one.
    return table.group_by("item").agg(pl.col("title").min()).collect(engine="streaming")
