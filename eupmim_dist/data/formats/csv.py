"""Any comma-separated file with a header line (RFC 4180 quoting), with the columns named by options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.formats.records import check_line_ends, check_records, header, line_of
from eupmim_dist.data.formats.table import dataset_from_table, mapped_columns
from eupmim_dist.data.frames import reading, scan_csv, scan_parquet
from eupmim_dist.data.writer import Dataset
from eupmim_dist.files import regular_file

INTEGER = "^-?[0-9]{1,19}$"
WHOLE_LINES = pl.QueryOptFlags(projection_pushdown=False)
"""Without it unused columns are not parsed, and a line with too many fields passes."""


def read(source: Path, options: Options, workspace: Path, progress: OnStage) -> Dataset:
    """Read one file, which may be larger than memory: the mapped columns go through a file in `workspace`."""
    regular_file(source, "the format expects one with a header line")
    names = header(source)
    columns = mapped_columns(source, options, names)
    selected = scan_csv(source).select(pl.nth(number).alias(role) for role, number in columns.items())
    if "time" in columns:
        is_integer = pl.col("time").str.contains(INTEGER)
        selected = selected.with_columns(pl.when(is_integer).then(pl.col("time")).cast(pl.Int64, strict=False))
    progress(f"reading {source.name}", 0, 0)
    check_line_ends(source, len(names))
    spilled = workspace / "events.parquet"
    with reading_csv(source, names):
        selected.sink_parquet(spilled.absolute(), optimizations=WHOLE_LINES)

    def locate(row: int) -> str:
        return f"{source}:{line_of(source, row)}"

    return dataset_from_table(scan_parquet(spilled), source, options, locate, progress)


@contextmanager
def reading_csv(source: Path, names: list[str]) -> Iterator[None]:
    """Around what has polars read a file with a header of these names: UserError, with the line where there is one."""
    with reading(source):
        try:
            yield
        except (pl.exceptions.PolarsError, OSError):
            check_records(source, len(names))
            raise
