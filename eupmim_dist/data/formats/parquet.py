"""Any parquet file, with the columns named by options."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.formats.table import dataset_from_table, mapped_columns
from eupmim_dist.data.frames import reading, scan_parquet
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, short, shown
from eupmim_dist.files import regular_file


def read(source: Path, options: Options, workspace: Path, progress: OnStage) -> Dataset:
    """Read one file, which may be larger than memory: the mapped columns go through a file in `workspace`.

    Times: integers, or dates (stored as microseconds).
    """
    regular_file(source, "the format expects one parquet file")
    spilled = workspace / "events.parquet"
    progress(f"reading {source.name}", 0, 0)
    with reading(source):
        _selected(scan_parquet(source), source, options).sink_parquet(spilled.absolute())
    return _dataset(scan_parquet(spilled), source, options, progress, first=1)


def read_frame(frame: pl.LazyFrame, options: Options, progress: OnStage) -> Dataset:
    """As `read`, of a table of any origin, whose rows are numbered from 0."""
    source = Path("data frame")
    with reading(source, "mend it, or give a frame that has been collected"):
        return _dataset(_selected(frame, source, options), source, options, progress, first=0)


def _dataset(selected: pl.LazyFrame, source: Path, options: Options, progress: OnStage, first: int) -> Dataset:
    return dataset_from_table(selected, source, options, lambda row: f"{source}: row {row + first}", progress)


def _selected(table: pl.LazyFrame, source: Path, options: Options) -> pl.LazyFrame:
    schema = table.collect_schema()
    names = schema.names()
    columns = mapped_columns(source, options, names)
    return table.select(
        _converted(source, role, number, names[number], schema[names[number]]) for role, number in columns.items()
    )


def _converted(source: Path, role: str, number: int, column: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.nth(number)
    if role == "time":
        if dtype.is_integer():
            return value.cast(pl.Int64, strict=False).alias(role)
        if dtype.is_temporal() and dtype not in (pl.Duration, pl.Time):
            return value.cast(pl.Datetime("us"), strict=False).dt.epoch("us").alias(role)
        raise UserError(f"{source}: column {shown(column)} is {short(dtype)}; the time is an integer or a date")
    return as_text(source, value, column, dtype, role).alias(role)


def as_text(source: Path | str, value: pl.Expr, column: str, dtype: pl.DataType, role: str) -> pl.Expr:
    """A column of ids or labels as text; `role` is what it is for. Raises UserError for what has no plain text."""
    if dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum):
        return value.cast(pl.String)
    if not role.startswith(LABELS):
        raise UserError(f"{source}: column {shown(column)} is {short(dtype)}; the {role} is an integer or a string")
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object, pl.Duration):
        raise UserError(f"{source}: column {shown(column)} is {short(dtype)}; a label is text, a number or a date")
    return value.cast(pl.String)


LABELS = ("attribute ", "category")
"""What a column may be for whose values are only told apart."""
