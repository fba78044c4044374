"""Negatives drawn per prediction: a pure function of (seed, counter) and of what may not be drawn.

Q predictions, N negatives, X excluded rows.
"""

import torch
from torch import Tensor

from eupmim_dist.data.counter import random_integers, stream_key


def draw_negatives(seed: int, counter: Tensor, excluded: Tensor, num: int, num_rows: int) -> Tensor:
    """N distinct rows per counter [Q], uniform over all rows (0 too) but the excluded [Q, X]: int64 [Q, N].

    Those that collide are drawn again, which leaves every set of allowed rows equally likely; at least N must be
    allowed.
    """
    counters = counter[:, None] * num + torch.arange(num)
    earlier = torch.ones(num, num, dtype=torch.bool).tril(-1)
    drawn = random_integers(stream_key(seed, "negatives", 0), counters, num_rows)
    attempt = 0
    while True:
        collides = (drawn[:, :, None] == excluded[:, None, :]).any(-1)
        collides |= ((drawn[:, :, None] == drawn[:, None, :]) & earlier).any(-1)
        if not collides.any():
            return drawn
        attempt += 1
        again = random_integers(stream_key(seed, "negatives", attempt), counters, num_rows)
        drawn = torch.where(collides, again, drawn)
