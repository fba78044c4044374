"""Stores made for a check, beside the one that all are given: of any number of items, which have an attribute."""

from pathlib import Path

import numpy as np
import polars as pl

from eupmim_dist.data.manifest import ItemAttribute
from eupmim_dist.data.writer import Dataset, write_dataset

ITEMS_OF_A_USER = 20
KIND = ItemAttribute("kind", ("a", "b", "c"), columns=1)
"""Of an item, or none."""


def write_store(path: Path, num_users: int, num_items: int, split_rule: str) -> None:
    """Users with as many items each, drawn evenly; a third each train, valid, test where users are split."""
    generator = np.random.default_rng(1)
    lengths = np.full(num_users, min(ITEMS_OF_A_USER, num_items))
    items = np.concatenate([generator.choice(num_items, length, replace=False) + 1 for length in lengths])
    dataset = Dataset(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=items,
        timestamps=None,
        attributes=[],
        attribute_values=np.zeros((num_users, 0), np.int64),
        split=np.arange(num_users) % 3,
        split_rule=split_rule,
        raw_users=pl.Series(range(num_users)).cast(pl.String),
        raw_items=pl.Series(range(1, num_items + 1)).cast(pl.String),
        titles=None,
        item_attributes=[KIND],
        item_values=generator.integers(0, len(KIND.labels) + 1, (num_items, 1), dtype=np.int32),
    )
    write_dataset(dataset, path, name=path.name, source="bench gpu")
