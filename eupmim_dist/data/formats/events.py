"""Raw events with any ids to a dataset: filter rare items and users, number them, order and split.

Items are numbered from 1 by falling count, ties by first appearance; users from 0 by first appearance,
shuffled where chance decides the split. With the seed and counts of the E-UPMiM authors this is what they do.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.sequences import MIN_LENGTH
from eupmim_dist.data.item_features import sorted_labels
from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.splits import BY_USER, SplitRule
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, short

AUTHORS_SEED = 1230
AUTHORS_MIN_COUNT = 5
UNKNOWN = "unknown"
"""The label of an attribute that is missing, in tables of events."""


@dataclass(frozen=True)
class Profiles:
    """`frame`: String column user, one row a user, and a column NAME or `attribute NAME` of each, read from `path`.

    With `attributes` the values are integer codes below the cardinalities; without, labels that get encoded.
    `unknown`: the label of a value that is missing, if any may be.
    """

    path: Path
    frame: pl.DataFrame
    attributes: Sequence[Attribute] | None = None
    unknown: str | None = None


def dataset_from_events(
    events: pl.LazyFrame,
    *,
    source: Path,
    progress: OnStage,
    profiles: Profiles | None = None,
    titles: pl.DataFrame | None = None,
    min_count: int = AUTHORS_MIN_COUNT,
    until_stable: bool = False,
    rule: SplitRule = BY_USER,
    seed: int = AUTHORS_SEED,
) -> Dataset:
    """Number, order and split the `events`: String columns user and item, optional int64 time, in file order.

    Items with fewer than `min_count` events are dropped, then users with fewer than max(5, min_count) of what
    is left; once, or again and again `until_stable`. Equal times keep file order. `titles`: String columns
    item and title. The events are streamed; in memory are some 40 bytes an event and the distinct ids.

    Raises:
        UserError: nothing is left, or a kept user has no profile.
    """
    raw_users, user = _dictionary_encode(events, "user", progress)
    raw_items, item = _dictionary_encode(events, "item", progress)
    progress("filtering", 0, 0)
    min_length = max(MIN_LENGTH, min_count)
    kept, item_counts = _filter(user, item, len(raw_users), len(raw_items), min_count, min_length, until_stable)
    report = {"dropped_interactions": len(kept) - int(np.count_nonzero(kept))}
    user, item = user[kept], item[kept]
    if not len(kept):
        raise UserError(f"{source}: there is no row to take in it")
    if not len(user):
        raise UserError(
            f"{source}: no user has {min_length} interactions with items that occur {min_count} times; "
            "bring more data or lower the minimum"
        )

    # Codes count up by first appearance, so a stable sort leaves ties in that order.
    user_order = np.flatnonzero(np.bincount(user))
    if rule.draws:
        user_order = user_order[_shuffled(len(user_order), seed)]
    frequent = np.flatnonzero(item_counts >= min_count)
    item_order = frequent[np.argsort(-item_counts[frequent], kind="stable")]
    report["dropped_users"] = len(raw_users) - len(user_order)
    report["dropped_items"] = len(raw_items) - len(item_order)

    progress("sorting", 0, 0)
    user = _rows_of(user_order, len(raw_users))[user]
    item = _rows_of(item_order, len(raw_items))[item] + 1
    time = None
    if "time" in events.collect_schema():
        time = events.select("time").collect(engine="streaming")["time"].to_numpy()[kept]
    order = np.argsort(user, kind="stable") if time is None else np.lexsort((time, user))

    raw_users, raw_items = raw_users[user_order], raw_items[item_order]
    attributes, values = _attributes_of(raw_users, profiles, report)
    num_users = len(raw_users)
    return Dataset(
        offsets=np.concatenate([[0], np.cumsum(np.bincount(user, minlength=num_users))]),
        items=item[order],
        timestamps=None if time is None else time[order],
        attributes=attributes,
        attribute_values=values,
        split=rule.codes(num_users),
        split_rule=rule.name,
        raw_users=raw_users,
        raw_items=raw_items,
        titles=None if titles is None else _looked_up(raw_items, titles, "item")["title"],
        report=report,
    )


def _dictionary_encode(events: pl.LazyFrame, column: str, progress: OnStage) -> tuple[pl.Series, np.ndarray]:
    """The distinct values of a column by first appearance, and the position of each event's value there."""
    progress(f"numbering {column}s", 0, 0)
    values = (
        events.select(column)
        .with_row_index("row", offset=0)
        .group_by(column)
        .agg(pl.col("row").min())
        .sort("row")
        .select(column)
        .with_row_index("code")
        .collect(engine="streaming")
    )
    codes = (
        events.select(column)
        .join(values.lazy(), on=column, how="left", maintain_order="left")
        .select("code")
        .collect(engine="streaming")
    )
    return values[column], codes["code"].to_numpy()


def _filter(
    user: np.ndarray,
    item: np.ndarray,
    num_users: int,
    num_items: int,
    min_count: int,
    min_length: int,
    until_stable: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Which events stay (bool), and the counts by item code that decided it."""
    kept = np.ones(len(user), bool)
    num_kept = len(user)
    while True:
        item_counts = np.bincount(item[kept], minlength=num_items)
        kept &= item_counts[item] >= min_count
        user_counts = np.bincount(user[kept], minlength=num_users)
        kept &= user_counts[user] >= min_length
        before, num_kept = num_kept, int(np.count_nonzero(kept))
        if not until_stable or num_kept == before:
            return kept, item_counts


def _shuffled(count: int, seed: int) -> np.ndarray:
    """0..count-1 in the order of `random.seed(seed); random.shuffle(list)`, as the authors shuffle users."""
    order = array("q", range(count))
    random.Random(seed).shuffle(order)
    return np.frombuffer(order, np.int64)


def _rows_of(codes: np.ndarray, num_codes: int) -> np.ndarray:
    """int32 or int64 [num_codes]: the position of each code in `codes`; what is not there is -1."""
    rows = np.full(num_codes, -1, np.int32 if num_codes < np.iinfo(np.int32).max else np.int64)
    rows[codes] = np.arange(len(codes))
    return rows


def _looked_up(ids: pl.Series, table: pl.DataFrame, key: str) -> pl.DataFrame:
    """The rows of `table` whose column `key` is each of `ids`, in their order; nulls where there is none."""
    return ids.to_frame(key).join(table, on=key, how="left", maintain_order="left")


def _attributes_of(
    raw_users: pl.Series, profiles: Profiles | None, report: dict[str, int]
) -> tuple[list[Attribute], np.ndarray]:
    """The attributes, with the label of each code where encoded here, and their codes [users, attributes].

    Users without a value are counted in `report`.
    """
    if profiles is None:
        return [], np.zeros((len(raw_users), 0), np.int32)
    found = _looked_up(raw_users, profiles.frame, "user").drop("user")
    if profiles.unknown is not None:
        for column in found.columns:
            if missing := found[column].null_count():
                report[f"users without {column.removeprefix('attribute ')}, {profiles.unknown} there"] = missing
        found = found.fill_null(profiles.unknown)
    without = found.select(pl.any_horizontal(pl.all().is_null())).to_series().arg_true()
    if without.len():
        raise UserError(
            f"{profiles.path}: no profile of user {short(raw_users[without[0]])}, who has interactions "
            f"({without.len()} such users); add it or leave his interactions out"
        )
    if profiles.attributes is not None:
        return list(profiles.attributes), found.to_numpy()
    labels = {column: sorted_labels(found[column]) for column in found.columns}
    codes = found.select(
        pl.col(column).cast(pl.Enum(values)).to_physical().cast(pl.Int32) for column, values in labels.items()
    )
    attributes = [
        Attribute(column.removeprefix("attribute "), len(values), tuple(values)) for column, values in labels.items()
    ]
    return attributes, codes.to_numpy()
