"""Any parquet file, with the columns named by options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.formats.table import dataset_from_table, mapped_columns
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError


def read(source: Path, options: Options, workspace: Path, progress: OnStage) -> Dataset:
    """Read one file, which may be larger than memory. Times: integers, or dates (stored as microseconds)."""
    if not source.is_file():
        raise UserError(f"{source}: not a file; the format expects one parquet file")
    return read_frame(lambda: pl.scan_parquet(source), source, options, progress)


def read_frame(
    table: Callable[[], pl.LazyFrame], source: Path, options: Options, progress: OnStage, first: int = 1
) -> Dataset:
    """As `read`, of a table of any origin; `source` is what messages call it, `first` the number of its first row."""
    try:
        frame = table()
        schema = frame.collect_schema()
        columns = mapped_columns(source, options, schema.names())
        selected = frame.select(_converted(source, role, column, schema[column]) for role, column in columns.items())

        def locate(row: int) -> str:
            return f"{source}: row {row + first}"

        return dataset_from_table(selected, source, options, locate, progress)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{source}: cannot be read ({str(error).splitlines()[0]})") from error


def _converted(source: Path, role: str, column: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.col(column)
    if role == "time":
        if dtype.is_integer():
            return value.cast(pl.Int64).alias(role)
        if dtype.is_temporal() and dtype not in (pl.Duration, pl.Time):
            return value.cast(pl.Datetime("us")).dt.epoch("us").alias(role)
        raise UserError(f"{source}: column {column!r} is {dtype}; the time is an integer or a date")
    if dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum) or role.startswith("attribute "):
        return value.cast(pl.String).alias(role)
    raise UserError(f"{source}: column {column!r} is {dtype}; the {role} is an integer or a string")
