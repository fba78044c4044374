"""The time of an event as a number: integers of any unit as they are, dates and times as microseconds (UTC)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from eupmim_dist.errors import UserError, short, shown

INTEGER = "^-?[0-9]{1,19}$"
ISO = r"^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(?::(\d\d(?:\.\d{1,9})?))?(?:Z|([+-])([01]\d|2[0-3]):?([0-5]\d))?)?$"
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
EARLIEST, LATEST = 10**8, 10**11
"""Unix seconds between which a number is taken for a time, from March 1973; nothing else depends on it."""
COLUMNS = ("time_integer", "time_date", "time_text")
"""What is known of a time: a number, or a date as microseconds, or the text that was neither."""


@dataclass(frozen=True)
class Kind:
    """What the times of a source are: `column` of the above holds them, `reason` is why another one is bad."""

    column: str
    called: str
    reason: str
    least: int | None
    most: int | None

    def __str__(self) -> str:
        if self.least is None or self.most is None:
            return f"{self.called}, none that can be read"
        if self.column == "time_date":
            return f"{self.called}, {_date(self.least)} to {_date(self.most)} UTC, kept as microseconds"
        for unit, scale in UNITS.items():
            if EARLIEST * scale <= self.least and self.most < LATEST * scale:
                first, last = (_date(value * 10**6 // scale) for value in (self.least, self.most))
                return f"Unix {unit}, {first} to {last} UTC"
        return f"integers, {self.least} to {self.most}"


def check_format(time_format: str | None) -> None:
    """Raises UserError for a `--time-format` by which no date can be read."""
    if time_format is None:
        return
    date = pl.Series([datetime(2024, 12, 30, 17, 38, 49, tzinfo=UTC)])
    try:
        again = date.dt.strftime(time_format.replace("%#z", "%z")).str.to_datetime(
            time_format, time_unit="us", strict=False
        )
        understood = again.dt.year().to_list() == [2024]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        understood = False
    if not understood:
        raise UserError(f"--time-format {short(time_format)}: no date can be read by it; write it as %d.%m.%Y %H:%M")


def parsed(table: pl.LazyFrame, source: str, column: str, dtype: pl.DataType, time_format: str | None) -> pl.LazyFrame:
    """`table` with `COLUMNS` in place of `time`, which is called `column` in the source.

    Raises UserError where its type is that of no time.
    """
    value, nothing = pl.col("time"), pl.lit(None, pl.Int64)
    if dtype != pl.String and time_format is not None:
        raise UserError(f"--time-format: column {shown(column)} is {short(dtype)}, no text; leave the option out")
    if dtype == pl.String and time_format is not None:
        integer, date = nothing, value.str.to_datetime(time_format, strict=False, time_unit="us").dt.epoch("us")
    elif dtype == pl.String:
        integer = pl.when(value.str.contains(INTEGER)).then(value).cast(pl.Int64, strict=False)
        table = table.with_columns(time_parts=value.str.extract_groups(ISO))  # once for all of them
        date = _iso(pl.col("time_parts").struct)
    elif dtype.is_integer():
        integer, date = value.cast(pl.Int64, strict=False), nothing
    elif dtype.is_temporal() and dtype not in (pl.Duration, pl.Time):
        integer, date = nothing, value.cast(pl.Datetime("us"), strict=False).dt.epoch("us")
    else:
        raise UserError(f"{source}: column {shown(column)} is {short(dtype)}; the time is an integer, a date or text")
    text = pl.lit("a date out of range") if dtype.is_temporal() else value.cast(pl.String)
    text = pl.when(value.is_not_null() & integer.is_null() & date.is_null()).then(text)
    new = (part.alias(name) for part, name in zip((integer, date, text), COLUMNS, strict=True))
    return table.with_columns(new).drop("time", "time_parts", strict=False)


def _iso(parts: Any) -> pl.Expr:
    """Microseconds of an ISO 8601 date or time, in UTC unless it says another zone; null of anything else."""
    date, minute, second, sign, hours, minutes = (parts[number] for number in range(6))
    local = pl.concat_str(date, pl.lit("T"), minute.fill_null("00:00"), pl.lit(":"), second.fill_null("00"))
    offset = (hours.cast(pl.Int64) * 60 + minutes.cast(pl.Int64)) * 60_000_000
    ahead = pl.when(sign == "-").then(-offset).otherwise(offset).fill_null(0)
    return local.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False, time_unit="us").dt.epoch("us") - ahead


def kind_of(table: pl.LazyFrame, time_format: str | None) -> Kind:
    """What most times of a table with `COLUMNS` are."""
    numbers = COLUMNS[:2]
    found = (
        table.select(
            getattr(pl.col(name), what)().alias(f"{what} {name}")
            for name in numbers
            for what in ("count", "min", "max")
        )
        .collect(engine="streaming")
        .row(0, named=True)
    )
    column = max(numbers, key=lambda name: found[f"count {name}"])
    if time_format is not None:
        called, reason = f"times by {short(time_format)}", f"time is not as --time-format {short(time_format)}"
        column = "time_date"
    elif not found[f"count {column}"]:
        called, reason = "unknown", "time is neither an integer of 64 bits nor a date or time (ISO 8601)"
    elif column == "time_date":
        called, reason = "dates and times", "time is no date or time (ISO 8601)"
    else:
        called, reason = "integers", "time is no integer of 64 bits"
    return Kind(column, called, reason, found[f"min {column}"], found[f"max {column}"])


def is_missing() -> pl.Expr:
    return pl.all_horizontal(pl.col(COLUMNS).is_null())


def text_of(integer: int | None, date: int | None, text: str | None) -> str | None:
    """A time of `COLUMNS` for a message."""
    return text or (integer is not None and str(integer)) or (_date(date) if date is not None else None)


def _date(microseconds: int) -> str:
    try:
        return f"{datetime(1970, 1, 1) + timedelta(microseconds=microseconds):%Y-%m-%d %H:%M}"
    except OverflowError:
        return f"{microseconds:,} microseconds"
