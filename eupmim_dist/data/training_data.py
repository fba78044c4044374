"""The interactions that training may use: what baselines are made of."""

import numpy as np

from eupmim_dist.data.store import InteractionStore


def training_interactions(store: InteractionStore) -> tuple[np.ndarray, np.ndarray]:
    """(user position, item) of every training interaction, int64 [n] each, in order within a user."""
    users = store.users("train")
    counts = store.train_lengths(users)
    starts = store.offsets[users]
    user = np.repeat(np.arange(len(users)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return user, store.items[np.repeat(starts, counts) + within].astype(np.int64)


def popular_items(store: InteractionStore, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The items with the most training interactions, int64 [n], the most popular first, and how many each has.

    At most so many, and none without any.
    """
    _, items = training_interactions(store)
    counts = np.bincount(items, minlength=store.num_item_rows)
    counts[0] = 0  # padding
    best = np.argsort(-counts, kind="stable")[:most]
    best = best[counts[best] > 0]
    return best, counts[best]
