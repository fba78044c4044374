"""What is known of items and users besides who had what: attributes, numbers and vectors, by raw id, for a data set.

M items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from eupmim_dist.data.manifest import ItemAttribute
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, short, shown

RESERVED = {"numbers", "vectors"}


@dataclass(frozen=True)
class Known:
    """What `prepare` is told of items and users besides who had what.

    `attributes`: columns of the file `items`, as NAME or, of several values in a field, NAME:SEPARATOR; `numbers`:
    columns of it. `items_separator`, `items_encoding`: of its text. The vectors are files as of `read_vectors`.
    """

    items: Path | None = None
    items_separator: str | None = None
    items_encoding: str | None = None
    attributes: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    item_vectors: Path | None = None
    user_vectors: Path | None = None


def add_item_attributes(
    dataset: Dataset,
    known: pl.DataFrame,
    attributes: Mapping[str, str | None],
    numbers: Sequence[str] = (),
    where: str = "items",
) -> None:
    """Adds to `dataset` what a frame with a row for each item, and the String column `item`, tells of its items.

    `attributes`: columns with categories, and what separates several of one item, if there can be. `numbers`: columns
    of numbers. Items that the frame does not know, and empty fields, have none. The report counts items without any.

    Raises:
        UserError: an item on two rows, or a number that is none; `where` says of what.
    """
    if taken := RESERVED & attributes.keys():
        raise UserError(f"{where}: no attribute can be called {min(taken)}, as a table of each model is; rename it")
    if (twice := known.filter(known["item"].is_duplicated())).height:
        raise UserError(f"{where}: item {short(twice['item'][0])} has two rows; leave one")
    rows = pl.DataFrame({"item": dataset.raw_items}).join(known, on="item", how="left", maintain_order="left")
    found = [_attribute(name, _values(rows[name], separator)) for name, separator in attributes.items()]
    if found:
        dataset.item_attributes = [attribute for attribute, _ in found]
        dataset.item_values = np.concatenate([values for _, values in found], axis=1)
    for name, (_, values) in zip(attributes, found, strict=True):
        dataset.report[f"items_without_{name}"] = int(np.count_nonzero(values[:, 0] == 0))
    if numbers:
        dataset.number_names = list(numbers)
        dataset.item_numbers = np.stack([_number(rows, name, where) for name in numbers], axis=1)
        for name, column in zip(numbers, dataset.item_numbers.T, strict=True):
            dataset.report[f"items_without_{name}"] = int(np.count_nonzero(np.isnan(column)))


def sorted_labels(column: pl.Series) -> list[str]:
    """Distinct labels: as numbers where all are integers, else alphabetically, as are those of one number."""
    labels = column.unique().alias("label")
    numbers = labels.cast(pl.Int64, strict=False).alias("number")
    order = ["label"] if numbers.null_count() else ["number", "label"]
    return pl.DataFrame([labels, numbers]).sort(order)["label"].to_list()


def _values(column: pl.Series, separator: str | None) -> pl.Series:
    """The distinct labels of each item, in their order: lists of String."""
    text = column.cast(pl.String).fill_null("")
    lists = text.str.split(separator) if separator else text.to_frame().select(pl.concat_list(text.name)).to_series()
    trimmed = pl.element().str.strip_chars()
    return lists.list.eval(trimmed.filter(trimmed != "").unique(maintain_order=True))


def _attribute(name: str, lists: pl.Series) -> tuple[ItemAttribute, np.ndarray]:
    """The attribute, and its values int32 [M, columns]: from 1, 0 fills up."""
    labels = sorted_labels(lists.explode().drop_nulls())
    number = lists.list.len().to_numpy()
    columns = max(1, int(number.max(initial=0)))
    values = np.zeros((len(lists), columns), np.int32)
    flat = lists.explode(empty_as_null=False) if number.any() else pl.Series([], dtype=pl.String)
    values[np.arange(columns) < number[:, None]] = flat.cast(pl.Enum(labels)).to_physical().to_numpy() + 1
    return ItemAttribute(name, tuple(labels), columns), values


def _number(rows: pl.DataFrame, name: str, where: str) -> np.ndarray:
    """Float32 [M]; NaN where there is none."""
    given = rows[name]
    numbers = given.cast(pl.Float64, strict=False)
    bad = rows.filter(given.is_not_null() & (given.cast(pl.String) != "") & ~numbers.is_finite().fill_null(value=False))
    if bad.height:
        raise UserError(
            f"{where}: {short(name)} of item {short(bad['item'][0])} is {shown(bad[name][0])}, no finite number; "
            "mend it, or leave it empty"
        )
    return numbers.fill_null(float("nan")).to_numpy().astype(np.float32)
