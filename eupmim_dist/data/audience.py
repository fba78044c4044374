"""Users to recommend to, looked up in a store: those it has, and those of whom only a history is known.

n users, A attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.formats.sequences import MIN_LENGTH
from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.requests import HISTORY, Requests
from eupmim_dist.data.splits import SPLITS
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.tables import read_table
from eupmim_dist.errors import UserError, listed, short, shown

FEW = 3
"""Names that a note gives of many."""


@dataclass(frozen=True)
class Given:
    """Histories and attributes that need not be the store's."""

    items: np.ndarray  # int64, flat
    offsets: np.ndarray  # int64 [n + 1]
    attributes: np.ndarray  # int64 [n, A]


@dataclass(frozen=True)
class Audience:
    names: pl.Series  # String [n], raw ids
    users: np.ndarray  # int64 [n], NO_ROW for one that the store does not have
    given: Given | None = None
    """None where all is as the store has it."""
    notes: tuple[str, ...] = ()
    """What was left out, a line each."""

    def __len__(self) -> int:
        return len(self.users)


def whole_split(store: InteractionStore, split: str | None) -> Audience:
    """All users of a split, or every one with a history. Raises UserError for another split or without users."""
    if split not in (*SPLITS, None):
        raise UserError(f"--split {short(split)}: choose from {', '.join(SPLITS)}; --all-users is for everybody")
    users = np.flatnonzero(np.diff(store.offsets)) if split is None else store.users(split)
    if not len(users):
        raise UserError(f"{'--all-users' if split is None else f'--split {split}'}: {store.path} has no such users")
    return Audience(names_of(store, "users", users), users)


def names_of(store: InteractionStore, kind: str, ids: np.ndarray) -> pl.Series:
    """Raw ids of `users` or `items` [n], the number itself where none is known: String [n]."""
    table = read_table(store.path / f"{kind}.parquet", ["id", "raw_id"])
    found = pl.DataFrame({"id": ids}).join(table, on="id", how="left", maintain_order="left")
    return found.select(pl.col("raw_id").fill_null(pl.col("id").cast(pl.String))).to_series()


def ids_of(store: InteractionStore, kind: str, raw: pl.Series) -> np.ndarray:
    """The ids of raw ids of `users` or `items`, NO_ROW where there is none: int64 [n]."""
    these = pl.col("raw_id").is_in(raw.drop_nulls().unique().implode())
    table = read_table(store.path / f"{kind}.parquet", ["id", "raw_id"], these).unique("raw_id", keep="first")
    found = pl.DataFrame({"raw_id": raw}).join(table, on="raw_id", how="left", maintain_order="left")
    return found["id"].fill_null(NO_ROW).to_numpy()


def known_items(store: InteractionStore, requests: Requests, source: str) -> tuple[np.ndarray, list[str]]:
    """The items of a list, int64 ascending, and what to say of those that the store has not.

    Raises UserError, beginning with `source`, if it has none.
    """
    raw = requests.rows["item"]
    ids = ids_of(store, "items", raw)
    unknown = raw.filter(pl.Series(ids == NO_ROW))
    if len(unknown) == len(raw):
        raise UserError(f"{source}: none of its items ({_few(raw)}) is in {store.path}; are these its raw ids?")
    notes = [f"{source}: unknown items: {len(unknown):,} of {len(raw):,} ({_few(unknown)})"] if len(unknown) else []
    return np.unique(ids[ids != NO_ROW]), notes


def asked(store: InteractionStore, requests: Requests, read: Collection[str], *, source: str, skip: bool) -> Audience:
    """Looks up users, what they had and their attributes.

    A history that is given takes the place of the store's, and so does an attribute. Unknown items of it are left out.
    `read` names the attributes that the model reads, which must be known. With `skip`, users are left out who are
    unknown and have no history, or none with a known item; `source` is what notes call all of it.

    Raises UserError for such a user without `skip`, if nobody is left, or for an attribute that is missing or unknown.
    """
    rows, notes = requests.rows, list[str]()
    users = ids_of(store, "users", rows["user"]) if requests.named else np.full(len(rows), NO_ROW)
    counts, items = np.zeros(len(rows), dtype=np.int64), np.zeros(0, dtype=np.int64)
    told = np.zeros(len(rows), dtype=bool)
    if HISTORY in rows.columns:
        told = (rows[HISTORY].list.len().fill_null(0) > 0).to_numpy()
        counts, items, unknown = _items(store, rows[HISTORY])
        if len(unknown):
            notes.append(f"{source}: unknown items of histories, left out: {len(unknown):,} ({_few(unknown)})")
    lost, empty = (users == NO_ROW) & ~told, told & (counts == 0)
    if not skip:
        _refuse(store, rows, lost, empty, requests.named)
    for wrong, what in ((lost, "unknown and without a history"), (empty, "with no known item in their history")):
        if wrong.any():
            names = _few(rows["user"].filter(pl.Series(wrong)))
            why = _dropped(store) if wrong is lost else ""
            notes.append(f"{source}: users {what}, skipped: {wrong.sum():,} of {len(rows):,} ({names}){why}")
    kept = np.flatnonzero(~lost & ~empty)
    if not len(kept):
        raise UserError(f"{notes[-1]}; nobody is left to recommend to")
    rows, users, told, counts = rows[kept], users[kept], told[kept], counts[kept]
    given = None
    if rows.width > 1:
        attributes = _attributes(store, rows, users, read, lambda row: requests.locate(int(kept[row])))
        given = Given(*_with_the_stores(store, users, told, counts, items), attributes)
    return Audience(rows["user"], users, given, tuple(notes))


def _refuse(store: InteractionStore, rows: pl.DataFrame, lost: np.ndarray, empty: np.ndarray, named: bool) -> None:
    if lost.any() and not named:
        raise UserError("--history: holds no item; give raw ids with blanks between them, oldest first")
    if lost.any():
        name = short(rows["user"][int(lost.argmax())])
        raise UserError(
            f"--user {name}: no such user in {store.path}{_dropped(store)}; `users.parquet` there lists the raw ids, "
            "and --history serves anybody, if the model reads histories"
        )
    if empty.any():
        history = rows[HISTORY][int(empty.argmax())]
        commas = "put blanks, not commas, between ids, or " if history.str.contains(",", literal=True).any() else ""
        raise UserError(
            f"--history: none of its items ({_few(history)}) is in {store.path}; {commas}see `items.parquet` there for "
            "the raw ids"
        )


def _dropped(store: InteractionStore) -> str:
    """Why a user of the source may not be there."""
    number = store.manifest.report.get("dropped_users", 0)
    fewer = f"fewer than {MIN_LENGTH} interactions, or than --min-count"
    return f" (preparing it dropped {number:,} users with {fewer})" if number else ""


def _items(store: InteractionStore, histories: pl.Series) -> tuple[np.ndarray, np.ndarray, pl.Series]:
    """How many items of each history are known, which these are, and which are not."""
    flat = pl.DataFrame({"row": pl.int_range(len(histories), eager=True), "raw": histories}).explode("raw")
    flat = flat.drop_nulls("raw")
    ids = ids_of(store, "items", flat["raw"])
    known = ids != NO_ROW
    counts = np.bincount(flat["row"].to_numpy()[known], minlength=len(histories))
    return counts, ids[known], flat["raw"].filter(pl.Series(~known))


def _with_the_stores(
    store: InteractionStore, users: np.ndarray, told: np.ndarray, counts: np.ndarray, items: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Flat items and offsets: those that were told of, and the store's of the others, who are all known."""
    rest = users[~told]
    counts = counts.copy()
    counts[~told] = store.lengths(rest)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    flat = np.empty(offsets[-1], dtype=np.int64)
    from_told = np.repeat(told, counts)
    flat[from_told] = items
    spans = zip(store.offsets[rest].tolist(), store.offsets[rest + 1].tolist(), strict=True)
    flat[~from_told] = np.concatenate([np.zeros(0, np.int64), *(store.items[start:stop] for start, stop in spans)])
    return flat, offsets


def _attributes(
    store: InteractionStore, rows: pl.DataFrame, users: np.ndarray, read: Collection[str], locate: Callable[[int], str]
) -> np.ndarray:
    known = users != NO_ROW
    values = store.attribute_values[np.where(known, users, 0)].astype(np.int64)
    values[~known] = NO_ROW
    for column, attribute in enumerate(store.attributes):
        name = attribute.name
        if name in rows.columns:
            labels = rows[name]
            there = (labels.is_not_null() & (labels != "")).to_numpy()
            values[there, column] = codes = _codes(attribute, labels.filter(pl.Series(there)))
            if (codes == NO_ROW).any():
                row = int(np.flatnonzero(there)[(codes == NO_ROW).argmax()])
                raise UserError(
                    f"{locate(row)}: {name} {shown(labels[row])} is unknown; there are {_values(attribute)}"
                )
        missing = values[:, column] == NO_ROW
        if name in read and missing.any():
            raise UserError(
                f"{locate(int(missing.argmax()))}: the model reads {listed(read)} of a user, and {name} is missing; "
                f"give it, as by --profile {name}=VALUE: {_values(attribute)}"
            )
        values[missing, column] = 0  # which nothing reads
    return values


def _codes(attribute: Attribute, labels: pl.Series) -> np.ndarray:
    """The value that each label stands for, NO_ROW for an unknown one."""
    if attribute.labels is None:
        codes = labels.cast(pl.Int64, strict=False)
        plain = (codes.cast(pl.String) == labels) & codes.is_between(0, attribute.cardinality - 1)
        return np.where(plain.fill_null(False).to_numpy(), codes.fill_null(NO_ROW).to_numpy(), NO_ROW)
    table = pl.DataFrame({"label": attribute.labels, "code": range(attribute.cardinality)})
    found = labels.alias("label").to_frame().join(table, on="label", how="left", maintain_order="left")
    return found["code"].fill_null(NO_ROW).to_numpy()


def _values(attribute: Attribute) -> str:
    return f"0 to {attribute.cardinality - 1}" if attribute.labels is None else listed(attribute.labels)


def _few(names: Sequence[str] | pl.Series) -> str:
    rest = len(names) - FEW
    return ", ".join(short(name) for name in names[:FEW]) + (f" and {rest:,} more" if rest > 0 else "")
