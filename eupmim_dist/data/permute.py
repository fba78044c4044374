"""Users and items numbered anew, by chance, so that their ids tell nothing."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import polars as pl

from eupmim_dist.data.blocks import spans
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, short

PERMUTED = {"user": "user_ids_permuted_by_seed", "item": "item_ids_permuted_by_seed"}
"""In a store's report: its ids are not those of the source."""
PERMUTING, PERMUTING_SEED = "elmrec", 1
"""The format whose ids are permuted unless it is said otherwise, as its models read them as text."""
MOST_SEEDS = 1 << 63
"""A report counts up to there."""


def permuting_seeds(users: Any, items: Any, format_name: str = "", *, keep_ids: bool = False) -> dict[str, int]:
    """Of what is to be permuted, `user` or `item`. Raises UserError."""
    given = {"user": users, "item": items}
    if keep_ids and format_name != PERMUTING:
        raise UserError(f"--keep-ids: only --format {PERMUTING} permutes ids without being told to; leave it out")
    if keep_ids and (users, items) != (None, None):
        raise UserError("--keep-ids: contradicts --permute-users and --permute-items; leave one out")
    if format_name == PERMUTING and not keep_ids:
        given = {what: PERMUTING_SEED if seed is None else seed for what, seed in given.items()}
    seeds = {}
    for what, asked in given.items():
        if asked is None:
            continue
        try:
            seeds[what] = operator.index(asked)
        except TypeError:
            seeds[what] = -1
        if not 0 <= seeds[what] < MOST_SEEDS or isinstance(asked, bool):
            raise UserError(f"--permute-{what}s {short(asked)}: give a seed from 0, such as {PERMUTING_SEED}")
    return seeds


def permute_users(dataset: Dataset, seed: int) -> None:
    """Numbers the users anew, by chance; the report says so."""
    order = np.random.default_rng(seed).permutation(len(dataset.raw_users))  # user i was order[i]
    lengths = np.diff(dataset.offsets)[order]
    _, places = spans(dataset.offsets[order], dataset.offsets[order] + lengths)
    dataset.offsets = np.concatenate([[0], np.cumsum(lengths)])
    dataset.items = dataset.items[places]
    dataset.raw_users = dataset.raw_users[order]
    for array in ("attribute_values", "split", "user_vectors", "negatives"):
        if (values := getattr(dataset, array)) is not None:
            setattr(dataset, array, values[order])
    dataset.timestamps = None if dataset.timestamps is None else dataset.timestamps[places]
    if dataset.explanations is not None:
        dataset.explanations = _renamed(dataset.explanations, "user", np.argsort(order))
    dataset.report[PERMUTED["user"]] = seed


def permute_items(dataset: Dataset, seed: int) -> None:
    """Numbers the items anew, by chance, so that their ids tell nothing; the report says so."""
    order = np.random.default_rng(seed).permutation(len(dataset.raw_items))  # item i + 1 was order[i] + 1
    new_id = np.zeros(len(order) + 1, np.int64)
    new_id[order + 1] = np.arange(1, len(order) + 1)
    dataset.items = new_id[dataset.items]
    dataset.raw_items = dataset.raw_items[order]
    dataset.titles = None if dataset.titles is None else dataset.titles[order]
    for array in ("item_values", "item_numbers", "item_vectors"):
        if (values := getattr(dataset, array)) is not None:
            setattr(dataset, array, values[order])
    if dataset.negatives is not None:
        dataset.negatives = new_id[dataset.negatives]
    if dataset.explanations is not None:
        dataset.explanations = _renamed(dataset.explanations, "item", new_id)
    dataset.report[PERMUTED["item"]] = seed


def _renamed(frame: pl.DataFrame, column: str, new_id: np.ndarray) -> pl.DataFrame:
    return frame.with_columns(pl.Series(column, new_id[frame[column].to_numpy()]))


PERMUTE = {"user": permute_users, "item": permute_items}
