"""What csv and parquet share: tables of events with named columns, checked and handed on to be numbered."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from eupmim_dist.data.formats import times
from eupmim_dist.data.formats.bad_rows import FIRST, BadRow, BadRows
from eupmim_dist.data.formats.events import (
    AUTHORS_MIN_COUNT,
    AUTHORS_SEED,
    UNKNOWN,
    Profiles,
    dataset_from_events,
)
from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.formats.parts import Part, places
from eupmim_dist.data.formats.profiles import conflicts_of, profiles_of
from eupmim_dist.data.formats.rules import ATTRIBUTE, Rule, first_broken, marked, role_of, rules_of, rules_of_times
from eupmim_dist.data.formats.where import Condition, conditions
from eupmim_dist.data.frames import scan_parquet
from eupmim_dist.data.splits import BY_USER, LEAVE_ONE_OUT, SplitRule
from eupmim_dist.data.told import Tell
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, listed, short, shown

TABLE_SPLITS: dict[str, SplitRule] = {rule.name: rule for rule in (BY_USER, LEAVE_ONE_OUT)}


@dataclass(frozen=True)
class Plan:
    """What is wanted of a table of events."""

    options: Options

    @cached_property
    def conditions(self) -> list[Condition]:
        """Raises UserError."""
        return conditions(self.options.where)

    @cached_property
    def names(self) -> dict[str, str]:
        """What the columns are called in the source: user, item, time, title and `attribute NAME` by role."""
        options = self.options
        roles = {"user": options.user_column, "item": options.item_column}
        roles |= {"time": options.time_column, "title": options.title_column}
        roles |= {ATTRIBUTE + name: name for name in options.attributes}
        return {role: name for role, name in roles.items() if name is not None}

    @property
    def described(self) -> str:
        """For people."""
        roles = [f"{role}: {short(name)}" for role, name in self.names.items() if not role.startswith(ATTRIBUTE)]
        if "time" not in self.names:
            roles.append("time: no column, so rows count in the order in which they stand")
        attributes = f"attributes: {listed(self.options.attributes)}"
        return "; ".join([*roles, attributes] if self.options.attributes else roles)

    @cached_property
    def rules(self) -> list[Rule]:
        return rules_of(self.names, self.conditions)

    @property
    def split_rule(self) -> SplitRule:
        return BY_USER if self.options.split is None else TABLE_SPLITS[self.options.split]

    def check(self, present: list[str]) -> None:
        """Raises UserError for an option that is missing or out of range; `present` are the columns of a source."""
        options = self.options
        if options.min_count is not None and options.min_count < 1:
            raise UserError(f"--min-count {options.min_count}: give 1 or more")
        if options.split not in (None, *TABLE_SPLITS):
            raise UserError(f"--split {short(options.split)}: give one of {', '.join(TABLE_SPLITS)}")
        if options.seed is not None and not self.split_rule.draws:
            raise UserError(f"--seed: {self.split_rule.name} draws nothing; leave the option out")
        for role in ("user", "item"):
            if role not in self.names:
                raise UserError(f"--{role}-column: say which column holds the {role} (there: {listed(present)})")
        if len(set(options.attributes)) < len(options.attributes):
            raise UserError("--attribute: the same name is given twice")
        times.check_format(options.time_format)
        if options.time_format is not None and options.time_column is None:
            raise UserError("--time-format: there are no times; give --time-column too")

    def columns(self, where: str, present: list[str]) -> dict[str, int]:
        """Which column of a source, from 0, is what: those of `names`, and `where N` of each condition.

        By number, as polars takes a name such as `*` for a pattern, and some names of a file for others. Raises
        UserError as `check`, and for a column the source has not.
        """
        self.check(present)
        found = {role: column_number(where, column, present) for role, column in self.names.items()}
        for number, condition in enumerate(self.conditions):
            found[role_of(number)] = column_number(
                f"--where {short(condition.typed)}: {where}", condition.column, present
            )
        return found

    def spill(self, table: pl.LazyFrame, part: str, events: Path, optimizations: pl.QueryOptFlags | None = None) -> int:
        """Writes the columns by role of a part, and what is wrong with its rows, to a file; returns their number.

        So a table may be larger than memory. Raises UserError for a time of a type that is none, and what polars does.
        """
        schema = table.collect_schema()
        for number, condition in enumerate(self.conditions):
            role = role_of(number)
            table = table.with_columns(condition.text(pl.col(role), schema[role]).alias(role))
        if "time" in schema:
            is_trimmed = self.options.trim and schema["time"] == pl.String
            value = pl.col("time").str.strip_chars() if is_trimmed else pl.col("time")
            if schema["time"] == pl.String:
                value = pl.when(value != "").then(value)
            table = times.parsed(
                table.with_columns(time=value), part, self.names["time"], schema["time"], self.options.time_format
            )
        checked = marked(table, self.rules, self.conditions, self.options.trim)
        checked.sink_parquet(events.absolute(), optimizations=optimizations or pl.QueryOptFlags())
        return int(scan_parquet(events).select(pl.len()).collect().item())


def column_number(where: str, column: str, present: list[str]) -> int:
    """Which of the columns `present` it is, from 0. Raises UserError, beginning with `where`, unless one is."""
    if column not in present:
        near = difflib.get_close_matches(column.casefold(), [name.casefold() for name in present], 1)
        nearest = next((name for name in present if name.casefold() in near), None)
        hint = "" if nearest is None else f"; did you mean {shown(nearest)}?"
        raise UserError(f"{where} no column {shown(column)}{hint}; there are {listed(present)}")
    if present.count(column) > 1:
        raise UserError(f"{where} {present.count(column)} columns called {shown(column)}; rename all but one")
    return present.index(column)


def dataset_from_parts(
    parts: Sequence[Part], source: str, plan: Plan, bad: BadRows, progress: OnStage, tell: Tell
) -> Dataset:
    """Make a dataset of the good rows of all `parts` that meet the conditions; `bad`: those that are in no part.

    Raises:
        UserError: bad rows that are not to be skipped, or too little data.
    """
    progress("checking", 0, 0)
    malformed = bad.counts.total()
    table = pl.scan_parquet([part.events.absolute() for part in parts], glob=False).with_row_index("row")
    is_wanted = pl.col("reason").is_null() & pl.col("dropped").is_null()
    rules = plan.rules
    if "time" in plan.names:
        kind = times.kind_of(table.filter(is_wanted), plan.options.time_format)
        tell("time", str(kind))
        late = first_broken(rules_of_times(kind), len(rules))
        rules = [*rules, *rules_of_times(kind)]
        table = table.with_columns(
            time=pl.col(kind.column),
            reason=pl.when(is_wanted & pl.col(kind.column).is_null()).then(late).otherwise(pl.col("reason")),
        )
    counts = table.group_by("reason", "dropped").len().sort("reason", "dropped").collect(engine="streaming")
    broken = {code: count for code, _, count in counts.iter_rows() if code is not None}
    _add_broken(bad, table, parts, rules, broken)
    dropped = {plan.conditions[number].typed: count for _, number, count in counts.iter_rows() if number is not None}
    table = table.filter(is_wanted) if broken or dropped else table

    attributes = [role for role in plan.names if role.startswith(ATTRIBUTE)]
    profiles = None
    if attributes:
        progress("reading profiles", 0, 0)
        table, frame = _with_profiles(table, attributes, parts, bad)
        profiles = Profiles(Path(source), frame, unknown=UNKNOWN)
    if bad.counts and not plan.options.skip_bad:
        raise bad.error(source)

    _tell_rows(tell, sum(part.num_rows for part in parts) + malformed, dropped, bad)
    dataset = dataset_from_events(
        table.select("user", "item", *(name for name in ("time",) if name in plan.names)),
        source=Path(source),
        progress=progress,
        profiles=profiles,
        titles=_titles(table, progress) if "title" in plan.names else None,
        min_count=AUTHORS_MIN_COUNT if plan.options.min_count is None else plan.options.min_count,
        until_stable=True,
        rule=plan.split_rule,
        seed=AUTHORS_SEED if plan.options.seed is None else plan.options.seed,
    )
    dataset.report |= bad.report() | {f"rows dropped by --where {typed}": count for typed, count in dropped.items()}
    return dataset


def _with_profiles(
    table: pl.LazyFrame, names: list[str], parts: Sequence[Part], bad: BadRows
) -> tuple[pl.LazyFrame, pl.DataFrame]:
    """The table without rows that have another value of an attribute than the user's first, and one row a user."""
    frame = profiles_of(table, names)
    if conflicts := conflicts_of(table, names, frame):
        marked_rows = conflicts.marked(table).filter(pl.col("conflict").is_not_null())
        counts = marked_rows.group_by("conflict").len().sort("conflict").collect(engine="streaming")
        for number, count in counts.iter_rows():
            first = _first_rows(marked_rows.filter(pl.col("conflict") == number))
            told = {row["row"]: conflicts.told(number, row) for row in first.iter_rows(named=True)}
            mend = "a user has one value of an attribute"
            bad.add(conflicts.reason(number), count, _located(parts, told), mend)
        table = conflicts.kept(table)
        frame = profiles_of(table, names)
    return table, frame.select("user", *names)


def _add_broken(
    bad: BadRows, table: pl.LazyFrame, parts: Sequence[Part], rules: list[Rule], counts: dict[int, int]
) -> None:
    found: dict[int, dict[int, str]] = {}  # what is told, by code and row
    for code in counts:
        shown_of = rules[code].shown
        rows = _first_rows(table.filter(pl.col("reason") == code))
        values: list[str | None] = [None] * len(rows)
        if shown_of == "time":
            values = [times.text_of(*each) for each in rows.select(times.COLUMNS).iter_rows()]
        elif shown_of is not None:
            values = rows[shown_of].to_list()
        told = [rules[code].reason + ("" if value is None else f": {shown(value)}") for value in values]
        found[code] = dict(zip(rows["row"].to_list(), told, strict=True))
    told_of = {row: told for own in found.values() for row, told in own.items()}
    bad_rows = dict(zip(sorted(told_of), _located(parts, told_of), strict=True))  # one pass through each file
    for code, count in counts.items():
        bad.add(rules[code].reason, count, [bad_rows[row] for row in found[code]], rules[code].mend)


def _first_rows(table: pl.LazyFrame) -> pl.DataFrame:
    return table.bottom_k(FIRST, by="row").collect(engine="streaming").sort("row")


def _located(parts: Sequence[Part], told: dict[int, str]) -> list[BadRow]:
    """Of what is told by row, in the order of the rows."""
    rows = sorted(told)
    return [BadRow(key, place, told[row]) for row, (key, place) in zip(rows, places(parts, rows), strict=True)]


def _tell_rows(tell: Tell, num_read: int, dropped: dict[str, int], bad: BadRows) -> None:
    kept = num_read - sum(dropped.values()) - bad.counts.total()
    without = [f"{count:,} without {typed}" for typed, count in dropped.items()]
    skipped = [f"{bad.counts.total():,} bad ones skipped"] if bad.counts else []
    tell("rows", "; ".join([f"{num_read:,} read", *without, *skipped, f"{kept:,} taken"]))
    for line in bad.told():
        tell("bad rows", line)


def _titles(table: pl.LazyFrame, progress: OnStage) -> pl.DataFrame:
    progress("reading titles", 0, 0)
    # Of several titles of an item any will do, but always the same one.
    return table.group_by("item").agg(pl.col("title").min()).collect(engine="streaming")
