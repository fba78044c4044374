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
from eupmim_dist.errors import UserError

TABLE_SPLITS: dict[str, SplitRule] = {rule.name: rule for rule in (BY_USER, LEAVE_ONE_OUT)}
Locate = Callable[[int], str]  # 0-based data row -> "file:line" or "file: row n"


def mapped_columns(source: Path, options: Options, present: list[str]) -> dict[str, str]:
    """Which column of the source is what: user, item, time, title and `attribute NAME` by role.

    Raises:
        UserError: an option is missing or out of range, or names a column the source has not.
    """
    if options.min_count is not None and options.min_count < 1:
        raise UserError(f"--min-count {options.min_count}: give 1 or more")
    if options.split not in (None, *TABLE_SPLITS):
        raise UserError(f"--split {options.split}: give one of {', '.join(TABLE_SPLITS)}")
    if options.seed is not None and not (rule := _split_rule(options)).draws:
        raise UserError(f"--seed: {rule.name} draws nothing; leave the option out")
    roles = {"user": options.user_column, "item": options.item_column}
    for role, column in roles.items():
        if column is None:
            raise UserError(f"--{role}-column: say which column holds the {role} (there: {', '.join(present)})")
    roles |= {"time": options.time_column, "title": options.title_column}
    roles |= {f"attribute {name}": name for name in options.attributes}
    if len(set(options.attributes)) < len(options.attributes):
        raise UserError("--attribute: the same name is given twice")
    for column in roles.values():
        if column is not None and column not in present:
            raise UserError(f"{source}: no column {column!r}; there are {', '.join(present)}")
    return {role: column for role, column in roles.items() if column is not None}


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
        value = pl.col(column)
        if column == "time":
            checks["time is missing or no integer"] = value.is_null()
        elif column in ("user", "item"):  # " 3" beside "3" would make two of one
            bad = value.is_null() | (value == "") | (value != value.str.strip_chars())
            checks[f"{column} is missing or has blanks around it"] = bad
        elif column != "title":
            checks[f"{column.removeprefix('attribute ')} is missing"] = value.is_null() | (value == "")
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
                f"{locate(row)}: user {user} has {attribute} {value!r}, on an earlier row {rows[name][0]!r}; "
                "a user has one value of an attribute"
            )
    return Profiles(source, frame.select("user", *(pl.col(n).alias(n.removeprefix("attribute ")) for n in names)))


def _titles(table: pl.LazyFrame, progress: OnStage) -> pl.DataFrame:
    progress("reading titles", 0, 0)
    # Of several titles of an item any will do, but always the same one.
    return table.group_by("item").agg(pl.col("title").min()).collect(engine="streaming")
