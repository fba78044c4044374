"""Results and recommendations as data frames."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from eupmim_dist.evaluation.recommend import Recommendations
from eupmim_dist.evaluation.runner import Result


def recommendations_frame(found: Sequence[Recommendations]) -> pl.DataFrame:
    """Columns: user, rank (from 1), item (raw id), title (null where unknown), score, interest (from 1)."""
    schema = {
        "user": pl.String,
        "rank": pl.Int64,
        "item": pl.String,
        "title": pl.String,
        "score": pl.Float64,
        "interest": pl.Int64,
    }
    rows = [
        (entry.user, rank, item.raw_id, item.title, item.score, item.interest)
        for entry in found
        for rank, item in enumerate(entry.items, start=1)
    ]
    return pl.DataFrame(rows, schema=schema, orient="row")


class Results(list[Result]):
    """Results of an evaluation, which show as a table."""

    def frame(self) -> pl.DataFrame:
        """A row for each result and cut-off: model, protocol, split, users, top_n, and a column for each metric."""
        rows: dict[tuple[Any, ...], dict[str, float]] = {}
        for result in self:
            for name, value in result.metrics.items():
                metric, _, cutoff = name.partition("@")
                key = (result.model, result.protocol, result.split, result.users, int(cutoff))
                rows.setdefault(key, {})[metric] = value
        columns = ("model", "protocol", "split", "users", "top_n")
        return pl.DataFrame([{**dict(zip(columns, key, strict=True)), **metrics} for key, metrics in rows.items()])

    def __repr__(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=200):
            return repr(self.frame())

    def _repr_html_(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1):
            return self.frame()._repr_html_()
