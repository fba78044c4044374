"""Categories of items, from a table beside the store."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from eupmim_dist.data.frames import lazy_frame
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError

COLUMNS = ("raw_id", "category")


def read_categories(source: Any, store: InteractionStore) -> np.ndarray:
    """A number for the category of each item, int64 [item rows]; -1 where the source has none.

    `source`: a Parquet or CSV file, or a data frame, with the columns raw_id and category; of several rows of an item
    the first counts.

    Raises UserError for another one, or if it has none of the store's items.
    """
    is_file = isinstance(source, str | Path)
    file = Path(source) if is_file else Path("categories")
    try:
        if not is_file:
            table = lazy_frame(source, COLUMNS)
        else:
            table = pl.scan_parquet(file) if file.suffix == ".parquet" else pl.scan_csv(file, infer_schema=False)
        present = table.collect_schema().names()
        for column in COLUMNS:
            if column not in present:
                raise UserError(f"{file}: has no column {column!r}; there are {', '.join(present)}")
        given = table.select(pl.col(COLUMNS).cast(pl.String)).unique("raw_id", keep="first", maintain_order=True)
        items = pl.scan_parquet(store.path / "items.parquet").select("id", "raw_id")
        found = items.join(given, on="raw_id").drop_nulls("category").collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{file}: cannot be read as a table ({str(error).splitlines()[0]})") from None
    if not len(found):
        raise UserError(f"{file}: has the category of none of the items of {store.path}; are these its raw ids?")
    categories = np.full(store.num_item_rows, -1)
    categories[found["id"].to_numpy()] = found["category"].rank("dense").to_numpy()
    return categories
