"""The interest vectors that users are recommended by, for another program to search with. One rank.

K interests, D dim.
"""

from collections.abc import Iterator

import numpy as np

from eupmim_dist.evaluation.recommend import whole_histories
from eupmim_dist.evaluation.runner import ranking_mode, scorer_of
from eupmim_dist.export.vector_files import Block, Vectors
from eupmim_dist.models.interface import ITEM_TABLE
from eupmim_dist.train.state import Assembled

USERS_PER_BLOCK = 2048


def user_vectors(trained: Assembled) -> Vectors:
    """Vectors [users, K, D] of every user with a history, as `recommend` ranks by: its best item is that with
    the largest dot product with any of the K.
    """
    users = np.flatnonzero(np.diff(trained.store.offsets))
    model = trained.model
    return Vectors("users", (len(users), model.num_interests, model.dim), _blocks(trained, users))


def scored_vectors(trained: Assembled) -> Vectors:
    """Vectors [items, D] as items are ranked by, with what their features add, by their ids."""
    part = trained.tables.to_rank("all").scored(ITEM_TABLE)
    kept = part.ids > 0
    ids, rows = part.ids[kept].numpy(), part.rows()[part.places[kept]].detach().numpy()
    return Vectors("items", rows.shape, iter([(ids, rows)]))


def _blocks(trained: Assembled, users: np.ndarray) -> Iterator[Block]:
    scorer = scorer_of(trained, "all")
    for first in range(0, len(users), USERS_PER_BLOCK):
        some = users[first : first + USERS_PER_BLOCK]
        with ranking_mode(trained.model):
            found = scorer.query(whole_histories(trained, some)).float().cpu().numpy()
        yield some, found
