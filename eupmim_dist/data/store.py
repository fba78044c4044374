"""The interaction store: a directory of memory-mapped arrays, the one input of training and evaluation.

`offsets.npy` int64 [users + 1], `items.npy` int32 or int64 [interactions] (time-ordered per user), optional
`timestamps.npy` int64 [interactions], `attributes.npy` int32 [users, attributes], `split.npy` uint8 [users], optional
`item_values.npy` int32, `item_numbers.npy` and `item_vectors.npy` float32 [item rows, columns], `user_vectors.npy`,
`negatives.npy` int32 or int64 [users, N], `users.parquet` and `items.parquet` (raw ids, titles), optional
`explanations.parquet`, and `dataset.json`, which names them all with their hashes. `writer.py` is the only place that
writes one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eupmim_dist.data.checks import check_values
from eupmim_dist.data.manifest import (
    ARRAYS,
    EXPLANATIONS,
    MANIFEST,
    TABLES,
    Attribute,
    ItemAttribute,
    StoreManifest,
    read_manifest,
)
from eupmim_dist.data.splits import SPLIT_RULES, SplitRule
from eupmim_dist.data.tables import has_titles, open_table, read_table
from eupmim_dist.errors import UserError, short
from eupmim_dist.hashing import OnBytes, ignore_bytes, sha256

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, eq=False)
class InteractionStore:
    """Read-only, memory-mapped view of an interaction store.

    `num_users` counts the rows of the user table (ids 0..num_users-1). `num_item_rows` counts the rows of the
    item table with its padding row 0; items are 1..num_item_rows-1. `fingerprint` identifies the content and
    is the same wherever the directory lies. `split_rule` says what the codes in `split` mean (splits.py).
    `manifest` is what dataset.json says.
    """

    path: Path
    name: str
    fingerprint: str
    num_users: int
    num_item_rows: int
    attributes: tuple[Attribute, ...]
    split_rule: str
    offsets: np.ndarray = field(repr=False)
    items: np.ndarray = field(repr=False)
    timestamps: np.ndarray | None = field(repr=False)
    attribute_values: np.ndarray = field(repr=False)
    split: np.ndarray = field(repr=False)
    manifest: StoreManifest = field(repr=False)
    item_values: np.ndarray | None = field(repr=False)
    """Of the manifest's item attributes, each some columns: values from 1, 0 for none."""
    item_numbers: np.ndarray | None = field(repr=False)
    """NaN where an item's is not known."""
    item_vectors: np.ndarray | None = field(repr=False)
    """Zeros where an item has none."""
    user_vectors: np.ndarray | None = field(repr=False)
    """Zeros where a user has none."""
    negatives: np.ndarray | None = field(repr=False)
    """Of each user items he has not had, which his target is ranked among."""

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True, on_bytes: OnBytes = ignore_bytes) -> InteractionStore:
        """Open the store in directory `path`.

        The manifest, file sizes, dtypes and shapes are always checked; `verify` also reads every file, compares its
        SHA-256 and looks whether its values are such as the manifest declares; `on_bytes` hears of its progress.

        Raises:
            UserError: `path` holds no store, one of another format version, or a damaged one.
        """
        path = Path(path)
        manifest = read_manifest(path)
        _check_files(path, manifest, on_bytes if verify else None)
        arrays = {name: _array(path / f"{name}.npy") for name in ARRAYS if f"{name}.npy" in manifest.files}
        _check_arrays(path, arrays, manifest)
        for name in TABLES:
            open_table(path / name)
        store = cls(
            path=path,
            name=manifest.name,
            fingerprint=manifest.fingerprint,
            num_users=manifest.counts.users,
            num_item_rows=manifest.counts.item_rows,
            attributes=manifest.attributes,
            split_rule=manifest.split_rule,
            offsets=arrays["offsets"],
            items=arrays["items"],
            timestamps=arrays.get("timestamps"),
            attribute_values=arrays["attributes"],
            split=arrays["split"],
            manifest=manifest,
            item_values=arrays.get("item_values"),
            item_numbers=arrays.get("item_numbers"),
            item_vectors=arrays.get("item_vectors"),
            user_vectors=arrays.get("user_vectors"),
            negatives=arrays.get("negatives"),
        )
        if verify:
            check_values(store, on_bytes)
        return store

    def is_that_of(self, fingerprint: str) -> bool:
        """Whether what was trained on a store with this fingerprint finds its data here: all of it, perhaps with more.

        A store that was prepared before something was known of its items, such as genres, has another fingerprint.
        """
        return fingerprint in (self.fingerprint, self.manifest.bare_fingerprint)

    def explanations(self) -> pl.LazyFrame | None:
        """What users wrote of items, as explanations.py has it; None where the data has none."""
        from eupmim_dist.data.explanations import open_explanations  # and polars, which few need

        return open_explanations(self.path / EXPLANATIONS) if EXPLANATIONS in self.manifest.files else None

    @property
    def rule(self) -> SplitRule:
        """What the store's split means (splits.py)."""
        return SPLIT_RULES[self.split_rule]

    def lengths(self, users: np.ndarray) -> np.ndarray:
        """Number of interactions of each of `users`, int64 of the same shape."""
        users = np.asarray(users, dtype=np.int64)
        return self.offsets[users + 1] - self.offsets[users]

    def values_of_items(self) -> Iterator[tuple[ItemAttribute, np.ndarray]]:
        """Each categorical attribute of items, and its values int32 [num_item_rows, columns]: from 1, 0 for none."""
        first = 0
        for attribute in self.manifest.item_attributes:
            assert self.item_values is not None, "opening a store makes sure"
            yield attribute, self.item_values[:, first : (first := first + attribute.columns)]

    def users(self, split: str) -> np.ndarray:
        """Ascending int64 ids of the users that `split` trains on or evaluates. Raises ValueError for another split."""
        return self.rule.users(split, self.split, self.offsets)

    def train_lengths(self, users: np.ndarray) -> np.ndarray:
        """How many leading interactions of each of `users` may be trained on, int64 of the same shape."""
        users = np.asarray(users, dtype=np.int64)
        return self.rule.train_lengths(self.split[users], self.lengths(users))

    def evaluation_window(self, users: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
        """`(cut, end)` of each of `users`: history is items[:cut], targets are items[cut:end].

        Both int64 of the shape of `users`, counted from the user's first interaction.

        Raises:
            ValueError: `split` has no evaluation window (`leave_one_out` train) or is unknown.
        """
        return self.rule.evaluation_window(self.lengths(users), split)

    def raw_user_ids(self, users: np.ndarray) -> list[str | None]:
        """The raw ids of `users` (int64 [n]) as in the source, in the same order; None if unknown."""
        return self._raw_ids("users.parquet", users)

    def raw_item_ids(self, items: np.ndarray) -> list[str | None]:
        """The raw ids of `items` (int64 [n]), in the same order; None for padding and unknown ids."""
        return self._raw_ids("items.parquet", items)

    def _raw_ids(self, table: str, ids: np.ndarray) -> list[str | None]:
        import polars as pl

        wanted = np.asarray(ids, dtype=np.int64)
        these = pl.col("id").is_in(pl.Series(np.unique(wanted)).implode())
        frame = read_table(self.path / table, ["id", "raw_id"], these)
        known = dict(zip(frame["id"].to_list(), frame["raw_id"].to_list(), strict=True))
        return [known.get(i) for i in wanted.tolist()]

    def users_of_raw_ids(self, raw: Sequence[str | int]) -> list[int | None]:
        """The users with these raw ids, in the same order; None where there is none."""
        import polars as pl

        wanted = pl.Series(sorted({str(each) for each in raw}), dtype=pl.String)
        these = pl.col("raw_id").is_in(wanted.implode())
        frame = read_table(self.path / "users.parquet", ["id", "raw_id"], these)
        known = dict(zip(frame["raw_id"].to_list(), frame["id"].to_list(), strict=True))
        return [known.get(str(each)) for each in raw]

    def item_titles(self) -> list[str | None] | None:
        """Titles by item id (`num_item_rows` entries, None where unknown); None if the data has none."""
        if not has_titles(file := self.path / "items.parquet"):
            return None
        frame = read_table(file, ["id", "title"])
        titles: list[str | None] = [None] * self.num_item_rows
        for item, title in zip(frame["id"].to_list(), frame["title"].to_list(), strict=True):
            titles[item] = title
        return titles


def _check_files(path: Path, manifest: StoreManifest, on_bytes: OnBytes | None) -> None:
    """Compares hashes too where there is an `on_bytes` to hear of it."""
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: missing from the store; copy it again or prepare the store again")
        if (size := file.stat().st_size) != entry.bytes:
            raise UserError(
                f"{file}: {size} bytes, {MANIFEST} says {entry.bytes}; copy it again or prepare the store again"
            )
        if on_bytes is not None and sha256(file, on_bytes) != entry.sha256:
            raise UserError(
                f"{file}: content does not match its SHA-256 in {MANIFEST}; copy it again or prepare the store again"
            )


def _array(file: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(file, mode="r")  # nothing else: no pickle
    except Exception as error:  # numpy has many, for whatever a header says
        raise UserError(
            f"{file}: cannot be read as an array ({short(error)}); copy it again or prepare the store again"
        ) from None


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], manifest: StoreManifest) -> None:
    users, items, interactions = manifest.counts.users, manifest.counts.item_rows, manifest.counts.interactions
    expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "offsets": (("int64",), (users + 1,)),
        "items": (("int32", "int64"), (interactions,)),
        "timestamps": (("int64",), (interactions,)),
        "attributes": (("int32",), (users, len(manifest.attributes))),
        "split": (("uint8",), (users,)),
        "item_values": (("int32",), (items, sum(each.columns for each in manifest.item_attributes))),
        "item_numbers": (("float32",), (items, len(manifest.item_numbers))),
        # Of any width.
        **{
            name: (("float32",), (rows, *arrays[name].shape[1:2]))
            for name, rows in (("item_vectors", items), ("user_vectors", users))
            if name in arrays
        },
        "negatives": (("int32", "int64"), (users, *(arrays["negatives"].shape[1:2] if "negatives" in arrays else ()))),
    }
    for name, told in (("item_values", manifest.item_attributes), ("item_numbers", manifest.item_numbers)):
        if bool(told) != (name in arrays):
            raise UserError(f"{path}: {MANIFEST} and {name}.npy do not agree; prepare the store again")
    for name, array in arrays.items():
        dtypes, shape = expected[name]
        if array.dtype.name not in dtypes or array.shape != shape:
            raise UserError(
                f"{path / name}.npy: is {array.dtype} {array.shape}, expected {' or '.join(dtypes)} {shape}; copy it "
                "again or prepare the store again"
            )
    offsets = arrays["offsets"]
    if offsets[0] != 0 or offsets[-1] != interactions:
        raise UserError(f"{path}/offsets.npy: does not span items.npy; copy it again or prepare the store again")
