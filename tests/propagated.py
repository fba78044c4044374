"""Rows of a model that propagates, by the plain oracle."""

import numpy as np
from torch import Tensor

from eupmim_dist.data.store import InteractionStore
from eupmim_dist.train.state import Assembled
from tests.oracles.propagation_plain import adjacency, clean_edges, propagated

Edges = set[tuple[int, int]]


def learnt(trained: Assembled) -> tuple[Tensor, Tensor]:
    """Those of users and of items before it, by id, float64."""
    users, items = (trained.tables.shards[name] for name in ("user", "item"))
    return users.weight[users.ids().argsort()].double(), items.weight[items.ids().argsort()].double()


def matrix_of(store: InteractionStore, left_out: Edges | None = None, known: str = "train") -> Tensor:
    sequences = [part.tolist() for part in np.split(store.items, store.offsets[1:-1])]
    return adjacency(clean_edges(sequences, known), left_out or set(), store.num_users, store.num_item_rows)


def plain_rows(trained: Assembled, left_out: Edges | None = None, known: str = "train") -> tuple[Tensor, Tensor]:
    """Those of all users and items after propagation, float64."""
    layers = trained.config.model.num_layers  # type: ignore[attr-defined]
    return propagated(*learnt(trained), matrix_of(trained.store, left_out, known), layers)
