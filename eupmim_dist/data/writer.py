"""Writes an interaction store, whole or not at all."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from eupmim_dist.data.manifest import (
    ARRAYS,
    EXPLANATIONS,
    MANIFEST,
    OPTIONAL_TABLES,
    TABLES,
    Attribute,
    Counts,
    ItemAttribute,
    StoreFile,
    StoreManifest,
    read_manifest,
)
from eupmim_dist.data.splits import NO_SPLIT, SPLIT_RULES
from eupmim_dist.errors import UserError
from eupmim_dist.files import new_directory, replace_text
from eupmim_dist.hashing import sha256


@dataclass
class Dataset:
    """What a store holds, in memory. U users, A attributes, I interactions, M items (padding not counted).

    `offsets` int64 [U+1], `items` int [I], `timestamps` int64 [I] or None, `attribute_values` int [U, A],
    `split` uint8 [U] and `split_rule` as in splits.py, `raw_users` String [U], `raw_items` and `titles` String [M]
    (entry i is item i+1). `report`: counts of what was dropped. Where known, of items (row i is item i + 1):
    `item_values` int32 [M, columns of item_attributes] from 1 with 0 for none, `item_numbers` float32 [M, numbers],
    `item_vectors` float32 [M, V], and of users `user_vectors` float32 [U, V']; `negatives` int [U, N], items that each
    user has not had, and `explanations` as in explanations.py.
    """

    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray | None
    attributes: Sequence[Attribute]
    attribute_values: np.ndarray
    split: np.ndarray
    split_rule: str
    raw_users: pl.Series
    raw_items: pl.Series
    titles: pl.Series | None = None
    report: dict[str, int] = field(default_factory=dict)
    item_attributes: Sequence[ItemAttribute] = ()
    item_values: np.ndarray | None = None
    number_names: Sequence[str] = ()
    item_numbers: np.ndarray | None = None
    item_vectors: np.ndarray | None = None
    user_vectors: np.ndarray | None = None
    negatives: np.ndarray | None = None
    explanations: pl.DataFrame | None = None


def item_dtype(num_item_rows: int) -> type[np.signedinteger]:
    """The narrowest of int32 and int64 that holds every item id."""
    return np.int32 if num_item_rows <= np.iinfo(np.int32).max else np.int64


@contextmanager
def new_store(out: Path, *, force: bool = False) -> Iterator[Path]:
    """A directory to fill and to end with `write_manifest`; it becomes `out` when the body succeeds, and else is gone.

    `force` replaces a store that `out` already holds. Anything else there is never touched.

    Raises:
        UserError: `out` is a file, holds something that is no store, or holds a store and `force` is not set; or
            it cannot be written.
    """
    check_replaceable(out, force=force)
    try:
        # An ending of its own, so that two may prepare the same store at once.
        with new_directory(out, ending=f"partial-{secrets.token_hex(4)}", replace=force) as directory:
            yield directory
    except OSError as error:
        if error.errno is None:  # else a full disk, most of all
            raise
        raise UserError(f"{out}: cannot be written ({error.strerror})") from error


def write_manifest(
    directory: Path,
    *,
    name: str,
    source: str,
    split_rule: str,
    attributes: Sequence[Attribute],
    num_item_rows: int,
    report: Mapping[str, int] | None = None,
    item_attributes: Sequence[ItemAttribute] = (),
    item_numbers: Sequence[str] = (),
) -> StoreManifest:
    """Write `dataset.json` over the arrays and tables that lie in `directory`, and return it.

    `source` says what the data was made from.
    """
    files = [directory / f"{array}.npy" for array in ARRAYS]
    files += [directory / table for table in (*TABLES, *OPTIONAL_TABLES)]
    files = [file for file in files if file.exists()]
    offsets = np.load(directory / "offsets.npy", mmap_mode="r")
    split = np.load(directory / "split.npy", mmap_mode="r")
    manifest = StoreManifest(
        name=name,
        source=source,
        counts=Counts(
            users=len(split),
            users_in_a_split=int(np.count_nonzero(split != NO_SPLIT)),
            items=num_item_rows - 1,
            item_rows=num_item_rows,
            interactions=int(offsets[-1]),
        ),
        split_rule=split_rule,
        split_users=SPLIT_RULES[split_rule].sizes(split),
        attributes=tuple(attributes),
        item_attributes=tuple(item_attributes),
        item_numbers=tuple(item_numbers),
        timestamp_ties=_timestamp_ties(directory, offsets),
        report=dict(report or {}),
        files={file.name: StoreFile(bytes=file.stat().st_size, sha256=sha256(file)) for file in files},
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    replace_text(directory / MANIFEST, text + "\n")
    return manifest


def check_replaceable(out: Path, *, force: bool) -> None:
    """UserError unless `out` is absent, an empty directory or, with `force`, a store and nothing else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; name a directory with --out")
    present = {entry.name for entry in out.iterdir()}
    if not present:
        return
    if MANIFEST not in present:
        raise UserError(f"{out}: holds other files ({min(present)}); name an empty or new directory with --out")
    strangers = present - {MANIFEST, *TABLES, *OPTIONAL_TABLES, *(f"{array}.npy" for array in ARRAYS)}
    if strangers:
        raise UserError(f"{out}: holds {min(strangers)} beside a store; name another directory with --out")
    if not force:
        name = read_manifest(out).name
        raise UserError(f"{out}: already holds the store {name!r}; replace it with --force or name another --out")


def write_dataset(dataset: Dataset, out: Path, *, name: str, source: str, force: bool = False) -> StoreManifest:
    """Write `dataset` as a store at `out` and return its manifest."""
    num_item_rows = len(dataset.raw_items) + 1
    with new_store(out, force=force) as directory:
        arrays = {
            "offsets": dataset.offsets.astype(np.int64, copy=False),
            "items": dataset.items.astype(item_dtype(num_item_rows), copy=False),
            "attributes": dataset.attribute_values.astype(np.int32, copy=False),
            "split": dataset.split.astype(np.uint8, copy=False),
        }
        if dataset.timestamps is not None:
            arrays["timestamps"] = dataset.timestamps.astype(np.int64, copy=False)
        for array in ("item_values", "item_numbers", "item_vectors"):
            if (values := getattr(dataset, array)) is not None:
                arrays[array] = np.concatenate([np.zeros_like(values[:1]), values])  # the padding row
        if dataset.user_vectors is not None:
            arrays["user_vectors"] = dataset.user_vectors
        if dataset.negatives is not None:
            arrays["negatives"] = dataset.negatives.astype(item_dtype(num_item_rows), copy=False)
        for array, values in arrays.items():
            np.save(directory / f"{array}.npy", values, allow_pickle=False)
        titles = {} if dataset.titles is None else {"title": dataset.titles}
        write_table(directory / "users.parquet", 0, {"raw_id": dataset.raw_users})
        write_table(directory / "items.parquet", 1, {"raw_id": dataset.raw_items, **titles})
        if dataset.explanations is not None:
            dataset.explanations.write_parquet(directory / EXPLANATIONS)
        return write_manifest(
            directory,
            name=name,
            source=source,
            split_rule=dataset.split_rule,
            attributes=dataset.attributes,
            num_item_rows=num_item_rows,
            report=dataset.report,
            item_attributes=dataset.item_attributes,
            item_numbers=dataset.number_names,
        )


def write_table(path: Path, first_id: int, columns: Mapping[str, pl.Series]) -> None:
    """Write the parquet table of ids first_id, first_id + 1, ... and the String `columns` of equal length."""
    num_rows = len(next(iter(columns.values())))
    ids = pl.int_range(first_id, first_id + num_rows, dtype=pl.Int64, eager=True).alias("id")
    pl.DataFrame([ids, *(values.alias(column) for column, values in columns.items())]).write_parquet(path)


def _timestamp_ties(directory: Path, offsets: np.ndarray) -> int | None:
    """Interactions with the timestamp of the user's interaction before; None without timestamps."""
    file = directory / "timestamps.npy"
    if not file.exists():
        return None
    timestamps = np.load(file, mmap_mode="r")
    same = timestamps[1:] == timestamps[:-1]
    starts = offsets[1:-1]  # a user's first interaction ties with nothing before it
    same[starts[(starts > 0) & (starts < len(timestamps))] - 1] = False
    return int(np.count_nonzero(same))
