"""Stores whose users, items and cities are named, and what a training started from another one must begin with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.writer import Dataset, write_dataset
from eupmim_dist.train.state import Assembled

Names = Sequence[str | None]
Table = dict[int, Tensor]
"""Row by id."""


def catalogue(
    directory: Path, users: Names, items: Names, cities: Sequence[str] | int, seed: int = 0
) -> InteractionStore:
    """Random histories; user i is users[i], item i is items[i - 1]; `cities` are labels, or how many there are."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(5, 12, len(users))
    num_cities = cities if isinstance(cities, int) else len(cities)
    city = Attribute("city", num_cities, None if isinstance(cities, int) else tuple(cities))
    held_out = len(users) // 5
    write_dataset(
        Dataset(
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            items=np.concatenate([generator.permutation(len(items))[:length] + 1 for length in lengths]),
            timestamps=None,
            attributes=[Attribute("level", 3), city],
            attribute_values=np.stack([generator.integers(0, n, len(users)) for n in (3, num_cities)], axis=1),
            split=np.repeat([0, 1, 2], [len(users) - 2 * held_out, held_out, held_out]),
            split_rule="by_user",
            raw_users=pl.Series(users, dtype=pl.String),
            raw_items=pl.Series(items, dtype=pl.String),
        ),
        directory,
        name=directory.name,
        source="test",
    )
    return InteractionStore.open(directory)


def raw_ids(store: InteractionStore, table: str) -> dict[int, str | None]:
    """Raw id by id."""
    frame = pl.read_parquet(store.path / f"{table}s.parquet")
    return dict(zip(frame["id"].to_list(), frame["raw_id"].to_list(), strict=True))


def rows_held(assembled: Assembled, table: str) -> Table:
    shard = assembled.tables.shards[table]
    return {int(i): row.clone() for i, row in zip(shard.ids(), shard.weight, strict=True)}


def expected_rows(
    table: str, old_store: InteractionStore, old: Table, new_store: InteractionStore, initial: Table
) -> Table:
    """The old row of the same raw id for each new id, else the initial one; padding stays padding."""
    by_raw = {raw: old[i] for i, raw in raw_ids(old_store, table).items() if raw is not None}
    found = {i: by_raw.get(raw, initial[i]) if raw else initial[i] for i, raw in raw_ids(new_store, table).items()}
    return {**found, 0: old[0]} if table == "item" else found


def same(found: Table, expected: Table) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[i], row) for i, row in expected.items())
