"""Small interaction stores for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from eupmim_dist.data.manifest import Attribute
from eupmim_dist.data.splits import NO_SPLIT
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.data.writer import Dataset, write_dataset


def negatives(num_users: int, num_items: int, number: int, seed: int = 1) -> np.ndarray:
    """Any items for each user: int64 [users, number], some twice, in no order."""
    return np.random.default_rng(seed).integers(1, num_items + 1, (num_users, number))


def small_store(
    directory: Path,
    *,
    num_users: int = 40,
    num_items: int = 30,
    shortest: int = 5,
    longest: int = 20,
    seed: int = 0,
    split_rule: str = "by_user",
    **known: Any,
) -> InteractionStore:
    """Random histories without repeats, two attributes; 60 % train, 20 % valid, 20 % test users. `known`: of items or
    users besides, as Dataset has it."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(shortest, min(longest, num_items) + 1, num_users)
    items = [generator.permutation(num_items)[:length] + 1 for length in lengths]
    split = np.repeat([0, 1, 2], [num_users - 2 * (num_users // 5), num_users // 5, num_users // 5])
    split[(split > 0) & (lengths == 0)] = NO_SPLIT
    dataset = Dataset(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        items=np.concatenate(items),
        timestamps=None,
        attributes=[Attribute("age", 7), Attribute("gender", 2)],
        attribute_values=np.stack([generator.integers(0, 7, num_users), generator.integers(0, 2, num_users)], axis=1),
        split=split,
        split_rule=split_rule,
        raw_users=pl.Series([f"u{i}" for i in range(num_users)]),
        raw_items=pl.Series([f"i{i}" for i in range(1, num_items + 1)]),
        titles=pl.Series([f"Item {i}" for i in range(1, num_items + 1)]),
        **known,
    )
    write_dataset(dataset, directory, name="small", source="test")
    return InteractionStore.open(directory)
