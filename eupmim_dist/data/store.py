"""The interaction store: a directory of memory-mapped arrays, the one input of training and evaluation.

`offsets.npy` int64 [users + 1], `items.npy` int32 or int64 [interactions] (time-ordered per user), optional
`timestamps.npy` int64 [interactions], `attributes.npy` int32 [users, attributes], `split.npy` uint8 [users],
`users.parquet` and `items.parquet` (raw ids, titles), and `dataset.json`, which names them all with their
hashes. `writer.py` is the only place that writes one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eupmim_dist.data.splits import SPLIT_RULES, SplitRule
from eupmim_dist.errors import UserError
from eupmim_dist.hashing import sha256, sha256_of_json

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
ARRAYS = ("offsets", "items", "timestamps", "attributes", "split")
OPTIONAL_ARRAYS = ("timestamps",)
TABLES = ("users.parquet", "items.parquet")


@dataclass(frozen=True)
class Attribute:
    """A categorical attribute of every user; its values are 0..cardinality-1."""

    name: str
    cardinality: int
    labels: tuple[str, ...] | None = None
    """What each value is called in the source, where it is known there."""

    @classmethod
    def from_manifest(cls, entry: dict[str, Any]) -> Attribute:
        """Reads what `as_manifest` gave. Raises KeyError, TypeError or ValueError if it is something else."""
        name, cardinality = str(entry["name"]), int(entry["cardinality"])
        labels = entry.get("labels")
        if labels is not None and not len(set(labels)) == len(labels) == cardinality:
            raise ValueError(f"attribute {name} has {cardinality} values and not as many labels")
        return cls(name, cardinality, None if labels is None else tuple(labels))

    def as_manifest(self) -> dict[str, Any]:
        """For JSON; without labels where none are known."""
        known = {} if self.labels is None else {"labels": list(self.labels)}
        return {"name": self.name, "cardinality": self.cardinality, **known}


@dataclass(frozen=True, eq=False)
class InteractionStore:
    """Read-only, memory-mapped view of an interaction store.

    `num_users` counts the rows of the user table (ids 0..num_users-1). `num_item_rows` counts the rows of the
    item table with its padding row 0; items are 1..num_item_rows-1. `fingerprint` identifies the content and
    is the same wherever the directory lies. `split_rule` says what the codes in `split` mean (splits.py).
    `manifest` is the parsed dataset.json.
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
    manifest: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> InteractionStore:
        """Open the store in directory `path`.

        Format version, file sizes, dtypes and shapes are always checked; `verify` also reads every file and
        checks its SHA-256.

        Raises:
            UserError: `path` holds no store, one of another format version, or a damaged one.
        """
        path = Path(path)
        manifest = read_manifest(path)
        arrays: dict[str, np.ndarray | None] = dict.fromkeys(ARRAYS)
        try:
            counts = manifest["counts"]
            num_users, num_item_rows = int(counts["users"]), int(counts["item_rows"])
            attributes = tuple(map(Attribute.from_manifest, manifest["attributes"]))
            if manifest["split_rule"] not in SPLIT_RULES:
                raise ValueError(f"unknown split rule {manifest['split_rule']!r}")
            _check_files(path, manifest["files"], verify=verify)
            for name in ARRAYS:
                if f"{name}.npy" in manifest["files"]:
                    arrays[name] = np.lib.format.open_memmap(path / f"{name}.npy", mode="r")  # nothing else
            _check_arrays(arrays, num_users, int(counts["interactions"]), len(attributes))
            fingerprint = _fingerprint(manifest)
        except (KeyError, TypeError, ValueError) as error:
            what = f"no key {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path / MANIFEST}: damaged store ({what}); prepare it again") from error
        offsets, items, attribute_values, split = (arrays[name] for name in ARRAYS if name not in OPTIONAL_ARRAYS)
        assert offsets is not None
        assert items is not None
        assert attribute_values is not None
        assert split is not None
        return cls(
            path=path,
            name=str(manifest["name"]),
            fingerprint=fingerprint,
            num_users=num_users,
            num_item_rows=num_item_rows,
            attributes=attributes,
            split_rule=manifest["split_rule"],
            offsets=offsets,
            items=items,
            timestamps=arrays["timestamps"],
            attribute_values=attribute_values,
            split=split,
            manifest=manifest,
        )

    @property
    def rule(self) -> SplitRule:
        """What the store's split means (splits.py)."""
        return SPLIT_RULES[self.split_rule]

    def lengths(self, users: np.ndarray) -> np.ndarray:
        """Number of interactions of each of `users`, int64 of the same shape."""
        users = np.asarray(users, dtype=np.int64)
        return self.offsets[users + 1] - self.offsets[users]

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
        frame = (
            pl.scan_parquet(self.path / table)
            .filter(pl.col("id").is_in(pl.Series(np.unique(wanted)).implode()))
            .select("id", "raw_id")
            .collect()
        )
        known = dict(zip(frame["id"].to_list(), frame["raw_id"].to_list(), strict=True))
        return [known.get(i) for i in wanted.tolist()]

    def users_of_raw_ids(self, raw: Sequence[str | int]) -> list[int | None]:
        """The users with these raw ids, in the same order; None where there is none."""
        import polars as pl

        wanted = pl.Series(sorted({str(each) for each in raw}), dtype=pl.String)
        table = pl.scan_parquet(self.path / "users.parquet")
        frame = table.filter(pl.col("raw_id").is_in(wanted.implode())).select("id", "raw_id").collect()
        known = dict(zip(frame["raw_id"].to_list(), frame["id"].to_list(), strict=True))
        return [known.get(str(each)) for each in raw]

    def item_titles(self) -> list[str | None] | None:
        """Titles by item id (`num_item_rows` entries, None where unknown); None if the data has none."""
        import polars as pl

        table = pl.scan_parquet(self.path / "items.parquet")
        if "title" not in table.collect_schema().names():
            return None
        frame = table.select("id", "title").collect()
        titles: list[str | None] = [None] * self.num_item_rows
        for item, title in zip(frame["id"].to_list(), frame["title"].to_list(), strict=True):
            titles[item] = title
        return titles


def read_manifest(path: Path) -> dict[str, Any]:
    """The parsed `dataset.json` of the store at `path`; UserError if there is none of this format version."""
    file = path / MANIFEST
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; make a store with `eupmim-dist prepare` or `synth`")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{file}: not found, so this is no interaction store; make one with `eupmim-dist prepare`"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); prepare the store again") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{file}: format_version is {version!r}, this program reads {FORMAT_VERSION}; prepare the store again"
        )
    return manifest


def _fingerprint(manifest: dict[str, Any]) -> str:
    hashes = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    content = [
        hashes,
        manifest["split_rule"],
        [[a["name"], a["cardinality"]] for a in manifest["attributes"]],
    ]
    return sha256_of_json(content)


def _check_files(path: Path, files: dict[str, dict[str, Any]], *, verify: bool) -> None:
    required = {f"{name}.npy" for name in ARRAYS if name not in OPTIONAL_ARRAYS} | set(TABLES)
    if missing := sorted(required - files.keys()):
        raise ValueError(f"files lists no {missing[0]}")
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: missing from the store; copy it again or prepare the store again")
        if (size := file.stat().st_size) != entry["bytes"]:
            raise UserError(
                f"{file}: {size} bytes, {MANIFEST} says {entry['bytes']}; copy it again or prepare the store again"
            )
        if file.suffix == ".parquet" and not _is_parquet(file):
            raise UserError(f"{file}: is no Parquet file; copy it again or prepare the store again")
        if verify and sha256(file) != entry["sha256"]:
            raise UserError(
                f"{file}: content does not match its SHA-256 in {MANIFEST}; copy it again or prepare the store again"
            )


def _is_parquet(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def _check_arrays(arrays: dict[str, np.ndarray | None], users: int, interactions: int, attributes: int) -> None:
    expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "offsets": (("int64",), (users + 1,)),
        "items": (("int32", "int64"), (interactions,)),
        "timestamps": (("int64",), (interactions,)),
        "attributes": (("int32",), (users, attributes)),
        "split": (("uint8",), (users,)),
    }
    for name, array in arrays.items():
        dtypes, shape = expected[name]
        if array is not None and (array.dtype.name not in dtypes or array.shape != shape):
            raise ValueError(f"{name}.npy is {array.dtype} {array.shape}, expected {' or '.join(dtypes)} {shape}")
    offsets = arrays["offsets"]
    if offsets is not None and (offsets[0] != 0 or offsets[-1] != interactions):
        raise ValueError("offsets.npy does not span items.npy")
