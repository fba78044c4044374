"""The interactions that training may use: what baselines are made of."""

import numpy as np

from eupmim_dist.data.blocks import spans
from eupmim_dist.data.store import InteractionStore

USERS_AT_A_TIME = 1 << 16


def training_interactions(store: InteractionStore, users: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(user position, item) of the training interactions of all training users, or of `users` among these: int64 [n]
    each, in order within a user."""
    users = store.users("train") if users is None else users
    starts = store.offsets[users]
    user, places = spans(starts, starts + store.train_lengths(users))
    return user, store.items[places].astype(np.int64)


def item_counts(store: InteractionStore) -> np.ndarray:
    """How many training interactions each item has, int64 [item rows]."""
    users, counts = store.users("train"), np.zeros(store.num_item_rows, np.int64)
    for first in range(0, len(users), USERS_AT_A_TIME):
        _, items = training_interactions(store, users[first : first + USERS_AT_A_TIME])
        counts += np.bincount(items, minlength=store.num_item_rows)
    return counts


def popular_items(store: InteractionStore, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The items with the most training interactions, int64 [n], the most popular first, and how many each has.

    At most so many, and none without any.
    """
    counts = item_counts(store)
    counts[0] = 0  # padding
    best = np.argsort(-counts, kind="stable")[:most]
    best = best[counts[best] > 0]
    return best, counts[best]
