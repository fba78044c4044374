"""Negatives drawn per prediction: a pure function of (seed, counter) and of what may not be drawn.

Q predictions, N negatives, X excluded rows.
"""

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.data.counter import random_integers, stream_key


def draw_negatives(seed: int, counter: Tensor, excluded: Tensor, num: int, num_rows: int) -> Tensor:
    """N distinct rows per counter [Q], uniform over all rows (0 too) but the excluded [Q, X]: int64 [Q, N].

    Those that collide are drawn again, which leaves every set of allowed rows equally likely; at least N must be
    allowed. `excluded` may hold NO_ROW and may repeat rows.
    """
    counters = counter[:, None] * num + torch.arange(num)
    drawn = random_integers(stream_key(seed, "negatives", 0), counters, num_rows)
    prediction, number = _collisions(excluded.numpy(), drawn.numpy(), num_rows)
    attempt = 0
    while len(prediction):
        attempt += 1
        key = stream_key(seed, "negatives", attempt)
        drawn[prediction, number] = random_integers(key, counters[prediction, number], num_rows)
        again = np.unique(prediction)  # the others are done
        place, number = _collisions(excluded[again].numpy(), drawn[again].numpy(), num_rows)
        prediction = again[place]
    return drawn


def _collisions(excluded: np.ndarray, drawn: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Where what was drawn is excluded or was drawn earlier for the same prediction: indices into [Q, N].

    A prediction's rows are sorted with their places as one number each, which numpy does several times faster than an
    indirect sort: of equal ones the first place comes first, and those after it collide.
    """
    num_excluded = excluded.shape[1]
    width = num_excluded + drawn.shape[1]
    bits = width.bit_length()
    if num_rows.bit_length() + bits > 63:
        raise OverflowError(f"{width} of {num_rows} rows are too many to be sorted")
    packed = np.concatenate([excluded, drawn], axis=1)
    packed <<= bits
    packed |= np.arange(width)
    packed.sort(axis=1)
    place = packed & ((1 << bits) - 1)
    packed >>= bits  # the rows, ascending
    prediction, later = np.nonzero(packed[:, 1:] == packed[:, :-1])
    number = place[prediction, later + 1] - num_excluded
    return prediction[number >= 0], number[number >= 0]
