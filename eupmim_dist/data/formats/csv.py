"""Any comma-separated file with a header line (RFC 4180 quoting), with the columns named by options."""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.formats.table import dataset_from_table, mapped_columns
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError

INTEGER = "^-?[0-9]{1,18}$"


def read(source: Path, options: Options, workspace: Path, progress: OnStage) -> Dataset:
    """Read one file, which may be larger than memory: the mapped columns go through a file in `workspace`."""
    if not source.is_file():
        raise UserError(f"{source}: not a file; the format expects one with a header line")
    try:
        table = pl.scan_csv(source, infer_schema=False)
        columns = mapped_columns(source, options, table.collect_schema().names())
        selected = table.select(pl.col(column).alias(role) for role, column in columns.items())
        if "time" in columns:
            is_integer = pl.col("time").str.contains(INTEGER)
            selected = selected.with_columns(pl.when(is_integer).then(pl.col("time")).cast(pl.Int64))
        progress(f"reading {source.name}", 0, 0)
        spilled = workspace / "events.parquet"
        # Without this flag unused columns are not parsed, and a line with too many fields passes.
        selected.sink_parquet(spilled, optimizations=pl.QueryOptFlags(projection_pushdown=False))
    except pl.exceptions.NoDataError:
        raise UserError(f"{source}: the file is empty") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _diagnosis(source, error) from error

    def locate(row: int) -> str:
        return f"{source}:{_line_of(source, row)}"

    return dataset_from_table(pl.scan_parquet(spilled), source, options, locate, progress)


def _line_of(source: Path, row: int) -> int:
    """1-based line on which 0-based data `row` begins; quoted fields may hold line ends."""
    with source.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        for _ in range(row + 1):  # the header and the rows before
            next(reader)
        return reader.line_num + 1


def _diagnosis(source: Path, error: Exception) -> UserError:
    """Why polars refused the file, with the line where that can be found out."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            begin, header = 1, next(reader)
            try:
                for fields in reader:
                    begin, line = reader.line_num, begin + 1
                    if len(fields) > len(header):
                        return UserError(f"{source}:{line}: {len(fields)} fields, the header has {len(header)}")
            except csv.Error as problem:
                return UserError(f"{source}:{reader.line_num}: {problem}; mend the quotes of this record")
    except UnicodeDecodeError:
        return UserError(f"{source}:{_undecodable_line(source)}: not UTF-8 text; convert the file to it")
    except OSError as problem:
        return UserError(f"{source}: cannot be read ({problem.strerror})")
    return UserError(f"{source}: cannot be read ({str(error).splitlines()[0]})")


def _undecodable_line(source: Path) -> int:
    with source.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1
