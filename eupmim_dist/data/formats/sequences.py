"""Data whose ids are already row numbers: ids are kept, each user's items are put in order and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from eupmim_dist.data.formats.lines import bad_line
from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.splits import GIVEN, NO_SPLIT, SPLITS
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, listed

MIN_LENGTH = 5  # shorter histories are dropped: the first training target is the fifth interaction


@dataclass(frozen=True)
class SplitFile:
    """A file of a given split: `frame` has int64 columns user, item, order, attributes; a row a line."""

    path: Path
    frame: pl.DataFrame


def dataset_from_splits(files: Sequence[SplitFile], attributes: Sequence[str] = ()) -> Dataset:
    """Merge the train, valid and test files (in this order) of a split by user; ids stay as they are.

    Users and items are 0..max and 1..max; an attribute's cardinality is its largest value + 1. A user with
    fewer than 5 interactions keeps his row but loses them, and is in no split.

    Raises:
        UserError: ids with wide gaps, a user in two files or with two profiles, a repeated (user, order).
    """
    user = np.concatenate([file.frame["user"].to_numpy() for file in files])
    item = np.concatenate([file.frame["item"].to_numpy() for file in files])
    order = np.concatenate([file.frame["order"].to_numpy() for file in files])
    starts = np.cumsum([0] + [file.frame.height for file in files])
    num_users, num_item_rows = _table_rows(files, "user"), _table_rows(files, "item")

    def error(row: int, problem: str) -> UserError:
        which = int(np.searchsorted(starts, row, side="right")) - 1
        return bad_line(files[which].path, row - int(starts[which]), problem)

    split = np.full(num_users, NO_SPLIT, np.uint8)
    for code, (start, end) in enumerate(pairwise(starts)):
        twice = np.flatnonzero(split[user[start:end]] != NO_SPLIT)
        if twice.size:
            row = int(start + twice[0])
            other = files[split[user[row]]].path.name
            raise error(row, f"user {user[row]} is in {other} too; a user belongs to one split")
        split[user[start:end]] = code

    values = np.zeros((num_users, len(attributes)), np.int64)
    for column, name in enumerate(attributes):
        given = np.concatenate([file.frame[name].to_numpy() for file in files])
        values[user[::-1], column] = given[::-1]  # the first line of a user is written last and stays
        conflict = np.flatnonzero(values[user, column] != given)
        if conflict.size:
            row = int(conflict[0])
            earlier = values[user[row], column]
            raise error(row, f"user {user[row]} has {name} {given[row]}, on an earlier line {earlier}")

    by_user = np.lexsort((order, user))
    repeated = np.flatnonzero((np.diff(user[by_user]) == 0) & (np.diff(order[by_user]) == 0))
    if repeated.size:
        row = int(by_user[repeated + 1].min())
        raise error(row, f"user {user[row]} has order {order[row]} on an earlier line too")

    lengths = np.bincount(user, minlength=num_users)
    cardinalities = values.max(axis=0, initial=0) + 1
    return kept_ids_dataset(
        lengths,
        item[by_user],
        num_item_rows=num_item_rows,
        split=split,
        split_rule=GIVEN.name,
        attributes=[
            Attribute(name, count, tuple(map(str, range(count))))
            for name, count in zip(attributes, cardinalities.tolist(), strict=True)
        ],
        attribute_values=values,
    )


def kept_ids_dataset(
    lengths: np.ndarray,
    items: np.ndarray,
    *,
    num_item_rows: int,
    split: np.ndarray,
    split_rule: str,
    attributes: Sequence[Attribute] = (),
    attribute_values: np.ndarray | None = None,
) -> Dataset:
    """A dataset of users 0..U-1 with `lengths` [U] and their `items` in turn; raw ids are the ids."""
    num_users = len(lengths)
    short = (lengths > 0) & (lengths < MIN_LENGTH)
    kept = ~np.repeat(short, lengths)
    report = {"dropped_users": int(short.sum()), "dropped_interactions": int(lengths[short].sum())}
    lengths = np.where(short, 0, lengths)
    if attribute_values is None:
        attribute_values = np.zeros((num_users, 0), np.int32)
    return Dataset(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=items[kept],
        timestamps=None,
        attributes=attributes,
        attribute_values=attribute_values,
        split=np.where(lengths > 0, split, NO_SPLIT).astype(np.uint8),
        split_rule=split_rule,
        raw_users=pl.int_range(num_users, eager=True).cast(pl.String),
        raw_items=pl.int_range(1, num_item_rows, eager=True).cast(pl.String),
        report=report,
    )


def _table_rows(files: Sequence[SplitFile], column: str) -> int:
    """Rows of a table whose row numbers are the ids of `column`; UserError where most rows would be empty."""
    distinct = pl.concat([file.frame[column].unique() for file in files]).n_unique()
    largest, path, row = max(
        (int(file.frame[column].max()), file.path, file.frame[column].arg_max() or 0)  # type: ignore[arg-type]
        for file in files
    )
    return check_gaps(largest, distinct, column, path, row)


def check_gaps(largest: int, distinct: int, what: str, path: Path, row: int) -> int:
    """`largest` + 1, or a UserError at 0-based `row` if `distinct` ids leave most of that table empty."""
    if largest > 10 * distinct + 1000:
        raise bad_line(
            path,
            row,
            f"{what} {largest} is far above the number of {what}s ({distinct}), but ids are table rows here; "
            "renumber them, or use --format csv, which does",
        )
    return largest + 1


def split_files(source: Path) -> tuple[str, dict[str, Path]]:
    """The common prefix and the paths of `PREFIX_train.txt`, `PREFIX_valid.txt` and `PREFIX_test.txt`.

    Raises:
        UserError: `source` is no directory, one of the files is missing, or there are two prefixes.
    """
    if not source.is_dir():
        raise UserError(f"{source}: not a directory; the format expects one with *_train.txt, *_valid.txt, *_test.txt")
    found = {split: sorted(source.glob(f"*_{split}.txt")) for split in SPLITS}
    for split, paths in found.items():
        if not paths:
            raise UserError(f"{source}: no file *_{split}.txt; the format expects it")
        if len(paths) > 1:
            raise UserError(f"{source}: two files {paths[0].name} and {paths[1].name}; keep one data set a directory")
    prefixes = [paths[0].name.removesuffix(f"_{split}.txt") for split, paths in found.items()]
    if len(set(prefixes)) > 1:
        raise UserError(f"{source}: files of different data sets ({listed(sorted(set(prefixes)))})")
    return prefixes[0], {split: paths[0] for split, paths in found.items()}
