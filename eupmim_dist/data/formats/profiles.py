"""The attributes of users from a table of events, where a user has one value of each."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from eupmim_dist.errors import short, shown


@dataclass(frozen=True)
class Conflicts:
    """Of users with two values of an attribute, the first ones: a column user, and `first NAME` of each attribute."""

    first: pl.DataFrame
    names: list[str]

    def marked(self, table: pl.LazyFrame) -> pl.LazyFrame:
        """`table`, with `conflict`: the first attribute of which a row has another value than the user's first row."""
        other = [
            pl.when(pl.col(name) != pl.col(f"first {name}")).then(pl.lit(number, pl.UInt16))
            for number, name in enumerate(self.names)
        ]
        return table.join(self.first.lazy(), on="user", how="left", maintain_order="left").with_columns(
            pl.coalesce(pl.lit(None, pl.UInt16), *other).alias("conflict")
        )

    def kept(self, table: pl.LazyFrame) -> pl.LazyFrame:
        """The rows without one."""
        columns = table.collect_schema().names()
        return self.marked(table).filter(pl.col("conflict").is_null()).select(columns)

    def reason(self, number: int) -> str:
        return f"user has another {self._called(number)} on an earlier row"

    def told(self, number: int, row: dict[str, str]) -> str:
        name = self.names[number]
        return (
            f"user {short(row['user'])} has {self._called(number)} {shown(row[name])}, on an earlier row "
            f"{shown(row[f'first {name}'])}"
        )

    def _called(self, number: int) -> str:
        return short(self.names[number].removeprefix("attribute "))


def profiles_of(table: pl.LazyFrame, names: list[str]) -> pl.DataFrame:
    """One row a user: a value of each attribute, null if it is missing on all rows, and `max NAME`, another if any."""
    values = [part for name in names for part in (pl.col(name).min(), pl.col(name).max().alias(f"max {name}"))]
    return table.group_by("user").agg(values).collect(engine="streaming")


def conflicts_of(table: pl.LazyFrame, names: list[str], profiles: pl.DataFrame) -> Conflicts | None:
    """Of a table with the column row, which numbers the rows."""
    several = [name for name in names if (profiles[name] != profiles[f"max {name}"]).any()]
    if not several:
        return None
    in_conflict = pl.any_horizontal(pl.col(name) != pl.col(f"max {name}") for name in several)
    first = profiles.filter(in_conflict).select("user")
    own = table.join(first.lazy(), on="user", how="semi")
    for name in several:
        known = own.filter(pl.col(name).is_not_null())
        rows = known.group_by("user").agg(pl.col("row").min()).collect(engine="streaming")
        values = known.join(rows.lazy(), on=["user", "row"], how="semi").select(
            "user", pl.col(name).alias(f"first {name}")
        )
        first = first.join(values.collect(engine="streaming"), on="user", how="left")
    return Conflicts(first, several)
