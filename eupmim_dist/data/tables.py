"""The Parquet tables of raw ids beside a store's arrays and in models: columns id, raw_id, and title where known."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from eupmim_dist.errors import UserError

if TYPE_CHECKING:
    import polars as pl


def has_titles(file: Path) -> bool:
    """Whether a table has the column title. Raises as `open_table`."""
    return "title" in open_table(file).collect_schema()


def open_table(file: Path) -> pl.LazyFrame:
    """Raises UserError if the file is no table of ids: if it cannot be read, or a column is of another type."""
    import polars as pl

    from eupmim_dist.data.frames import reading, scan_parquet

    with reading(file, *_AS_TABLE):
        rows = scan_parquet(file)
        schema = rows.collect_schema()
    for name, expected in {"id": pl.Int64, "raw_id": pl.String, "title": pl.String}.items():
        if schema.get(name, pl.String if name == "title" else None) != expected:
            found = f"is {schema[name]}" if name in schema else "is not there"
            raise UserError(f"{file}: its column {name} {found}, expected {expected}; {_MEND}")
    return rows


def read_table(file: Path, columns: Collection[str], keep: pl.Expr | None = None) -> pl.DataFrame:
    """Some columns of a table, of the rows that `keep` keeps. Raises as `open_table`."""
    from eupmim_dist.data.frames import reading

    rows = open_table(file)
    with reading(file, *_AS_TABLE):
        frame = (rows if keep is None else rows.filter(keep)).select(columns).collect()
    if "id" in columns and frame["id"].null_count():
        raise UserError(f"{file}: its column id has holes; {_MEND}")
    return frame


_MEND = "copy or make it again"
_AS_TABLE = _MEND, "a table of ids"
