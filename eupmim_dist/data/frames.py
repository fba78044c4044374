"""Data frames of other libraries as polars frames."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import polars as pl

from eupmim_dist.errors import UserError


def lazy_frame(source: Any, wanted: Collection[str | None] | None = None) -> pl.LazyFrame:
    """A frame of polars, pandas or any library with the Arrow interface; of a mapping of columns, too.

    Of pandas only the columns that are `wanted`, if it says so, are converted; the others keep their names alone.

    Raises UserError for anything else, or where pandas needs pyarrow and has it not.
    """
    if isinstance(source, pl.LazyFrame):
        return source
    unread: list[str] = []
    if wanted is not None and hasattr(source, "iloc"):  # pandas, which may hold what no other library can
        unread = [str(name) for name in source.columns if name not in wanted]
        source = source[[name for name in source.columns if name in wanted]]
    try:
        if source is None or isinstance(source, str):
            raise TypeError("it has no columns")
        frame = pl.DataFrame(source)
    except ImportError:
        raise UserError(
            f"data frame: {type(source).__module__.partition('.')[0]} hands over text and categories through pyarrow, "
            "which is not installed; `pip install pyarrow`, or give a frame of polars"
        ) from None
    except Exception as error:  # each library has its own
        reason = " ".join(str(error).split())
        raise UserError(
            f"data frame: a {type(source).__name__} cannot be read as one ({reason}); give one of polars, pandas or "
            "Arrow, or a path"
        ) from None
    return frame.lazy().with_columns(pl.lit(None).alias(name) for name in unread)
