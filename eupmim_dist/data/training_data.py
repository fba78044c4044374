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
