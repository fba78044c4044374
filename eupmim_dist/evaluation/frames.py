"""Results and recommendations as data frames."""

from typing import Any

import numpy as np
import polars as pl

from eupmim_dist.evaluation.recommend import Block, ItemLabels, Wanted
from eupmim_dist.evaluation.runner import Result
from eupmim_dist.evaluation.topn import NO_ITEM

REASON = pl.Struct({"item": pl.String, "title": pl.String, "weight": pl.Float64})
COLUMNS: dict[str, Any] = {
    "user": pl.String,
    "rank": pl.Int64,
    "item": pl.String,
    "title": pl.String,
    "score": pl.Float64,
    "interest": pl.Int64,
}


def recommended_columns(wanted: Wanted) -> dict[str, Any]:
    """Names and types of the columns of `recommended_frame`."""
    reasons = "because" if wanted.why else "nearest" if wanted.per_interest else None
    return COLUMNS | ({} if reasons is None else {reasons: pl.List(REASON)})


def recommended_frame(names: pl.Series, block: Block, labels: ItemLabels, wanted: Wanted) -> pl.DataFrame:
    """A row for each item of a block's users [b], best first, those of one interest after those of another.

    Columns: user, rank (from 1), item (raw id), title (null where unknown), score, interest (from 1); where they were
    asked for `because` or `nearest`, lists of items, titles and weights.
    """
    _, num_lists, length = block.items.shape
    kept = np.flatnonzero(block.items.reshape(-1) != NO_ITEM)
    items = pl.Series(block.items.reshape(-1)[kept])
    frame = pl.DataFrame(
        {
            "user": names.gather(pl.Series(kept // (num_lists * length))),
            "rank": kept % length + 1,
            "item": labels.raw.gather(items),
            "title": labels.titles.gather(items),
            "score": block.scores.reshape(-1)[kept].astype(np.float64),
            "interest": block.interests.reshape(-1)[kept] + 1,
        },
        schema=COLUMNS,
    )
    if block.reasons is None:
        return frame
    numbers, weights = (
        part.numpy().reshape(-1, part.shape[-1]) for part in (block.reasons.items, block.reasons.weights)
    )
    of_row = kept if wanted.why else kept // length
    name = "because" if wanted.why else "nearest"
    return frame.with_columns(_reasons(numbers[of_row], weights[of_row], labels).alias(name))


def with_text(frame: pl.DataFrame) -> pl.DataFrame:
    """The same for CSV, which has no lists: raw ids with blanks between them."""
    lists = [name for name, dtype in frame.schema.items() if dtype == pl.List(REASON)]
    return frame.with_columns(
        pl.col(name).list.eval(pl.element().struct.field("item")).list.join(" ") for name in lists
    )


def by_user(names: pl.Series, block: Block, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of a block in one for each user, also for one who gets nothing: user, and items, a list."""
    number = np.repeat(np.arange(len(names)), (block.items != NO_ITEM).sum((1, 2)))
    rows = frame.select(pl.struct(pl.exclude("user")).alias("items")).with_columns(pl.Series("number", number))
    lists = rows.group_by("number", maintain_order=True).agg("items")
    every = pl.DataFrame({"user": names, "number": np.arange(len(names))})
    joined = every.join(lists, on="number", how="left", maintain_order="left")
    return joined.select("user", pl.col("items").fill_null([]))


def _reasons(items: np.ndarray, weights: np.ndarray, labels: ItemLabels) -> pl.Series:
    """Items and their weights [m, M] as lists: List(REASON) [m]."""
    flat = pl.Series(np.maximum(items, 0).reshape(-1))
    rows = pl.DataFrame(
        {
            "row": np.repeat(np.arange(len(items)), items.shape[1]),
            "item": labels.raw.gather(flat),
            "title": labels.titles.gather(flat),
            "weight": weights.reshape(-1).astype(np.float64),
        }
    ).filter(pl.Series(items.reshape(-1) != NO_ITEM))
    lists = rows.group_by("row").agg(pl.struct("item", "title", "weight").alias("reasons"))
    every = pl.DataFrame({"row": np.arange(len(items))}).join(lists, on="row", how="left", maintain_order="left")
    return every["reasons"].cast(pl.List(REASON)).fill_null([])


class Results(list[Result]):
    """Results of an evaluation, which show as a table."""

    def frame(self) -> pl.DataFrame:
        """A row for each result and cut-off: model, protocol, split, users, top_n (null where there is none), and a
        column for each metric."""
        rows: dict[tuple[Any, ...], dict[str, float]] = {}
        for result in self:
            for name, value in result.metrics.items():
                metric, _, cutoff = name.partition("@")
                key = (result.model, result.protocol, result.split, result.users, int(cutoff) if cutoff else None)
                rows.setdefault(key, {})[metric] = value
        columns = ("model", "protocol", "split", "users", "top_n")
        return pl.DataFrame([{**dict(zip(columns, key, strict=True)), **metrics} for key, metrics in rows.items()])

    def __repr__(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200):
            return repr(self.frame())

    def _repr_html_(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1):
            return self.frame()._repr_html_()
