"""explanations.parquet of a store: what users wrote of items, and the split that the source put it in."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from eupmim_dist.data.frames import reading, scan_parquet
from eupmim_dist.errors import UserError

SCHEMA = {"user": pl.Int64, "item": pl.Int64, "feature": pl.String, "explanation": pl.String, "split": pl.String}
"""Ids as in the store. The splits are `train`, `valid` and `test`, whatever the store's own split is."""
_MEND = "copy the store again or prepare it again"


def open_explanations(file: Path) -> pl.LazyFrame:
    """The columns of SCHEMA. Raises UserError if the file is no such table."""
    with reading(file, _MEND, "a table of explanations"):
        rows = scan_parquet(file)
        schema = rows.collect_schema()
    for name, expected in SCHEMA.items():
        if schema.get(name) != expected:
            found = f"is {schema[name]}" if name in schema else "is not there"
            raise UserError(f"{file}: its column {name} {found}, expected {expected}; {_MEND}")
    return rows


def check_explanations(file: Path, num_users: int, num_item_rows: int) -> None:
    """Raises UserError for a value that there cannot be."""
    rows = open_explanations(file)
    good = (
        pl.col("user").is_between(0, num_users - 1)
        & pl.col("item").is_between(1, num_item_rows - 1)
        & pl.col("split").is_in(["train", "valid", "test"])
        & pl.col("feature").is_not_null()
        & pl.col("explanation").is_not_null()
    )
    with reading(file, _MEND, "a table of explanations"):
        bad = rows.with_row_index("row").filter(~good.fill_null(value=False)).head(1).collect()
    if bad.height:
        raise UserError(f"{file}: row {bad['row'][0]} holds what there cannot be; {_MEND}")
