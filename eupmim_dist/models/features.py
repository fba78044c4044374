"""Features of rows: what a store knows of items and users besides their ids, as part of the rows of their tables.

With model.item_attributes, model.item_vectors or model.user_vectors every model of the family works with rows

    row_i  +  the mean over its values of the rows of these, for each attribute  +  sum_j number_ij * row_j

in place of row_i alone, for histories, targets and candidates alike (parallel/features.py).

M items and the padding, U users, C values of an attribute at most, V numbers, D dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from eupmim_dist.config.schema import ModelSection
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.errors import UserError, listed, shown
from eupmim_dist.models.interface import ITEM_TABLE, TableSpec

NUMBERS = "numbers"
"""The table of all numbers of items is `item:numbers`, that of an attribute `item:NAME`."""


ROWS_FOR_LENGTH = 10_000
"""By which the length of vectors is judged: what their map makes of them is to be as large as a row, at first."""


class Described(Protocol):
    """What says what is known of items: a store's manifest, or a model's."""

    @property
    def item_numbers(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Feature:
    """Values of one attribute, or numbers, of every row of a table; the arrays may be memory-mapped."""

    table: str
    """Whose rows have it."""
    spec: TableSpec
    """The table of its own rows: one for each value, row 0 for none; or one for each number."""
    values: np.ndarray | None = None
    """Int [rows of the table, C], from 1; 0 fills up."""
    numbers: np.ndarray | None = None
    """Float32 [rows of the table, V]."""


def features_of(config: ModelSection, store: InteractionStore, tables: Sequence[TableSpec]) -> list[Feature]:
    """Those that a model's settings ask for. Raises UserError for what the store, or the model, does not have."""
    items = next((spec for spec in tables if spec.name == ITEM_TABLE), None)
    found = [] if items is None else _of_attributes(config, store, items)  # train/check.py refuses a model without
    for spec, vectors, asked, key in _vectors(config, store, tables):
        if asked == "projected":
            some = vectors[:: len(vectors) // ROWS_FOR_LENGTH + 1].astype(np.float64)  # of what may be large, in a file
            length = float(np.sqrt((some**2).sum(1).mean())) or 1.0
            own = TableSpec(f"{spec.name}:vectors", vectors.shape[1], spec.dim, init_std=spec.init_std / length)
            found.append(Feature(spec.name, own, numbers=vectors))
        elif vectors.shape[1] != spec.dim:
            raise UserError(
                f"model.{key}: {asked} vectors are the rows, and those of {store.path} have {vectors.shape[1]} numbers "
                f"where rows have {spec.dim}; set model.dim={vectors.shape[1]} or model.{key}=projected"
            )
    return found


def trained_or_not(config: ModelSection, store: InteractionStore, tables: Sequence[TableSpec]) -> list[TableSpec]:
    """The tables with those marked whose rows are frozen vectors."""
    frozen = {spec.name for spec, _, asked, _ in _vectors(config, store, tables) if asked == "frozen"}
    return [replace(spec, trained=spec.name not in frozen) for spec in tables]


def first_rows(config: ModelSection, store: InteractionStore, tables: Sequence[TableSpec]) -> dict[str, np.ndarray]:
    """Table -> float32 [rows, D] that its rows begin as; zeros for a row that begins as any other."""
    return {spec.name: vectors for spec, vectors, asked, _ in _vectors(config, store, tables) if asked != "projected"}


def _vectors(
    config: ModelSection, store: InteractionStore, tables: Sequence[TableSpec]
) -> list[tuple[TableSpec, np.ndarray, str, str]]:
    """The table, the store's vectors, what is asked of them, and by which key."""
    found = []
    for key, of, vectors in (
        ("item_vectors", "items", store.item_vectors),
        ("user_vectors", "users", store.user_vectors),
    ):
        if (asked := getattr(config, key)) == "none":
            continue
        spec = next((spec for spec in tables if spec.id_map == of), None)
        if spec is None:
            raise UserError(f"model.{key}: model {config.name} has no table of {of}; set it to none")
        if spec.untrained == "zero":  # then a user who is held out is looked up by no id
            raise UserError(f"model.{key}: users never trained on would have none; set model.unseen_users=table too")
        if vectors is None:
            raise UserError(
                f"model.{key}: {store.path} has no vectors of {of}; prepare it with --{of[:-1]}-vectors FILE, or set "
                "it to none"
            )
        found.append((spec, vectors, asked, key))
    return found


def _of_attributes(config: ModelSection, store: InteractionStore, items: TableSpec) -> list[Feature]:
    values = {attribute.name: (attribute.labels, given) for attribute, given in store.values_of_items()}
    known = [*values, *store.manifest.item_numbers]
    chosen = known if config.item_attributes == ["all"] else config.item_attributes
    for name in chosen:
        if name not in known:
            there = f"there are {listed(known)}" if known else "it has none; prepare it with --items FILE"
            raise UserError(f"model.item_attributes: {store.path} knows no {shown(name)} of its items; {there}")
    found = [
        Feature(
            ITEM_TABLE,
            TableSpec(f"{ITEM_TABLE}:{name}", len(labels) + 1, items.dim, padding_row=0, init_std=items.init_std),
            values=given,
        )
        for name, (labels, given) in values.items()
        if name in chosen
    ]
    if numbers := numbers_of(config, store.manifest):
        assert store.item_numbers is not None, "opening a store makes sure"
        columns = [store.manifest.item_numbers.index(name) for name in numbers]
        spec = TableSpec(f"{ITEM_TABLE}:{NUMBERS}", len(columns), items.dim, init_std=items.init_std)
        found.append(Feature(ITEM_TABLE, spec, numbers=standardised(store.item_numbers[:, columns])))
    return found


def numbers_of(config: ModelSection, known: Described) -> tuple[str, ...]:
    """The numbers of items that a model reads, in the order of their rows."""
    chosen = config.item_attributes
    return tuple(name for name in known.item_numbers if chosen == ["all"] or name in chosen)


def standardised(numbers: np.ndarray) -> np.ndarray:
    """Float32 [rows, V] with mean 0 and deviation 1 over the items, which are all rows but the first; 0 for NaN."""
    of_items = numbers[1:].astype(np.float64)
    known = np.isfinite(of_items)
    count = known.sum(0).clip(min=1)
    mean = np.where(known, of_items, 0.0).sum(0) / count
    centred = np.where(known, of_items - mean, 0.0)
    deviation = np.sqrt((centred**2).sum(0) / count)
    found = np.zeros_like(numbers)
    found[1:] = centred / np.where(deviation > 0, deviation, 1.0)
    return found
