"""Categories of items, from a table beside the store."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from eupmim_dist.data.formats.parquet import as_text
from eupmim_dist.data.formats.separators import WHOLE_LINES, small_text_file
from eupmim_dist.data.formats.table import column_number
from eupmim_dist.data.frames import lazy_frame, reading, scan_parquet
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.tables import read_table
from eupmim_dist.errors import UserError, listed
from eupmim_dist.files import regular_file

COLUMNS = ("item", "category")
FEW = 3
"""Items that a note names of many."""


def read_categories(source: Any, store: InteractionStore) -> tuple[np.ndarray, list[str]]:
    """A number for the category of each item, int64 [item rows], -1 where the source has none; what to say of those.

    `source`: a Parquet or CSV file, or a data frame, with the columns item, of raw ids, and category; of several rows
    of an item the first counts.

    Raises UserError for another one, or if it has none of the store's items.
    """
    if isinstance(source, str | Path):
        file = regular_file(Path(source), "it cannot be read as a table of categories")
        given = _from_parquet(file) if file.suffix == ".parquet" else _from_csv(file)
    else:
        file, table = Path("categories"), lazy_frame(source, COLUMNS)
        with reading(file):
            given = _selected(table, file, table.collect_schema().names()).collect()
    first = given.unique("item", keep="first", maintain_order=True)
    items = read_table(store.path / "items.parquet", ["id", "raw_id"])
    found = items.join(first, left_on="raw_id", right_on="item").drop_nulls("category")
    if not len(found):
        raise UserError(f"{file}: has the category of none of the items of {store.path}; are these its raw ids?")
    categories = np.full(store.num_item_rows, -1)
    categories[found["id"].to_numpy()] = found["category"].rank("dense").to_numpy()
    without = items.join(found, on="id", how="anti")
    few = f"{file}: has no category of {len(without):,} of {len(items):,} items ({listed(without['raw_id'][:FEW])}"
    more = ", ..." if len(without) > FEW else ""
    return categories, [f"{few}{more}); each is taken for a category of its own"] if len(without) else []


def _from_parquet(file: Path) -> pl.DataFrame:
    with reading(file):
        table = scan_parquet(file)
        return _selected(table, file, table.collect_schema().names()).collect()


def _from_csv(file: Path) -> pl.DataFrame:
    with small_text_file(file, [(name,) for name in COLUMNS]) as text:
        return _selected(text.scan(), file, text.names).collect(optimizations=WHOLE_LINES)


def _selected(table: pl.LazyFrame, file: Path, names: list[str]) -> pl.LazyFrame:
    types = table.collect_schema().dtypes()
    numbers = {name: column_number(f"{file}: has", name, names) for name in COLUMNS}
    return table.select(
        as_text(file, pl.nth(number), name, types[number], name).alias(name) for name, number in numbers.items()
    )
