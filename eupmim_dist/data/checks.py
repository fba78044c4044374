"""Whether a store's arrays and tables hold what its manifest declares, looked at by blocks once they are hashed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from eupmim_dist.data.manifest import EXPLANATIONS, TABLES
from eupmim_dist.data.splits import NO_SPLIT, SPLITS, TEST, VALID
from eupmim_dist.data.tables import read_table
from eupmim_dist.errors import UserError
from eupmim_dist.hashing import OnBytes

if TYPE_CHECKING:
    from eupmim_dist.data.store import InteractionStore

BLOCK = 1 << 22
"""Values at a time."""
MEND = "copy the store again or prepare it again"


Blocks = Callable[..., Iterator[tuple[int, np.ndarray]]]


def check_values(store: InteractionStore, on_bytes: OnBytes) -> None:
    """Raises UserError, which names file and value, unless every offset, id, code and time is one there can be.

    `on_bytes` hears of each block looked at.
    """
    most, blocks = store.num_item_rows - 1, partial(_blocks, on_bytes)
    for problem in (
        _of_offsets(store, blocks),
        _outside(blocks, store.items, 1, most, "items.npy", "item"),
        *(
            _outside(blocks, store.attribute_values[:, column], 0, each.cardinality - 1, "attributes.npy", each.name)
            for column, each in enumerate(store.attributes)
        ),
        *(
            _outside(blocks, values, 0, len(each.labels), "item_values.npy", each.name)
            for each, values in store.values_of_items()
        ),
        *(
            _not_finite(blocks, values, f"{name}.npy", may_lack=name == "item_numbers")
            for name in ("item_numbers", "item_vectors", "user_vectors")
            if (values := getattr(store, name)) is not None
        ),
        *([] if store.negatives is None else [_outside(blocks, store.negatives, 1, most, "negatives.npy", "item")]),
        _of_split(store, blocks),
        _of_times(store, blocks),
    ):
        if problem:
            raise UserError(f"{store.path}/{problem}; {MEND}")
    for name, first, stop in zip(TABLES, (0, 1), (store.num_users, store.num_item_rows), strict=True):
        _check_ids(store, name, first, stop)
    if EXPLANATIONS in store.manifest.files:
        from eupmim_dist.data.explanations import check_explanations

        check_explanations(store.path / EXPLANATIONS, store.num_users, store.num_item_rows)


def _of_offsets(store: InteractionStore, blocks: Blocks) -> str | None:
    for first, block in blocks(store.offsets, overlap=1):
        falls = np.flatnonzero(np.diff(block) < 0)
        if falls.size:
            at = first + int(falls[0])
            return f"offsets.npy: falls from {store.offsets[at]} to {store.offsets[at + 1]} after user {at}"
    return None


def _of_split(store: InteractionStore, blocks: Blocks) -> str | None:
    known = np.zeros(256, bool)
    known[[*range(len(SPLITS)), NO_SPLIT]] = True
    for first, block in blocks(store.split):
        strange = np.flatnonzero(~known[block])
        if strange.size:
            at = int(strange[0])
            return f"split.npy: user {first + at} has the code {block[at]}, which stands for no split"
        held_out = (block == VALID) | (block == TEST)
        nothing = np.flatnonzero(held_out & (np.diff(store.offsets[first : first + len(block) + 1]) == 0))
        if nothing.size:
            return f"split.npy: user {first + int(nothing[0])} is held out and has no interactions"
    return None


def _of_times(store: InteractionStore, blocks: Blocks) -> str | None:
    if store.timestamps is None:
        return None
    for first, block in blocks(store.timestamps, overlap=1):
        falls = first + 1 + np.flatnonzero(block[1:] < block[:-1])
        # From one user to the next they may.
        users = np.searchsorted(store.offsets, [first, first + len(block)])
        inside = falls[~np.isin(falls, store.offsets[users[0] : users[1] + 1])]
        if inside.size:
            return f"timestamps.npy: falls within a user, at interaction {int(inside[0])}"
    return None


def _not_finite(blocks: Blocks, values: np.ndarray, file: str, *, may_lack: bool) -> str | None:
    for first, block in blocks(values):
        good = np.isfinite(block) | (np.isnan(block) & may_lack)
        if (strange := ~good.all(1)).any():
            return f"{file}: holds a number that is not finite, in row {first + int(np.flatnonzero(strange)[0])}"
    return None


def _outside(blocks: Blocks, values: np.ndarray, least: int, most: int, file: str, what: str) -> str | None:
    for first, block in blocks(values):
        if len(block) and (block.min() < least or block.max() > most):
            at, *column = np.argwhere((block < least) | (block > most))[0].tolist()
            return f"{file}: holds {what} {block[at, *column]} at {first + at}, where there are {least} to {most}"
    return None


def _check_ids(store: InteractionStore, name: str, first: int, stop: int) -> None:
    found = read_table(store.path / name, ["id"])["id"].to_numpy()
    if len(found) != stop - first or (found != np.arange(first, stop)).any():
        raise UserError(f"{store.path / name}: its column id is not {first} to {stop - 1}, in order; {MEND}")


def _blocks(on_bytes: OnBytes, values: np.ndarray, overlap: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Where each block begins, and it with so many values of the next one."""
    for first in range(0, len(values), BLOCK):
        block = values[first : first + BLOCK + overlap]
        yield first, block
        on_bytes(block.nbytes)
