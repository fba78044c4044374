"""How sure a figure is: intervals and paired tests over the users of a split, and corrections for several tests.

n users. Every draw is a function of the seed, so the same figures give the same interval.
"""

from collections.abc import Sequence

import numpy as np

DRAWS = 10_000
BLOCK_NUMBERS = 1 << 22
"""Random numbers held at a time."""


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of float64 [n] over users (Efron and Tibshirani, "An Introduction
    to the Bootstrap", 1993, chapter 13). A single value has an interval without width.
    """
    [(low, high)] = bootstrap_intervals(values[:, None], level=level, draws=draws, seed=seed)
    return low, high


def bootstrap_intervals(
    values: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> list[tuple[float, float]]:
    """The same of each column of float64 [n, m], of the same draws of users: for the time of one."""
    random, number = np.random.default_rng(seed), len(values)
    means = []
    for block in _blocks(draws, number):
        drawn = random.integers(0, number, size=(block, number)) + np.arange(0, block * number, number)[:, None]
        times = np.bincount(drawn.ravel(), minlength=block * number).reshape(block, number)
        means.append(times @ values / number)
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def paired_p_value(one: np.ndarray, other: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> float:
    """The two-sided p-value of a paired randomisation test of equal means (Fisher; Smucker et al., CIKM 2007).

    one, other: float64 [n], a value of the same user at each place. Under the null hypothesis the sign of each user's
    difference is a coin toss; the observed one counts as a draw, so no p-value is 0.
    """
    difference, random = one - other, np.random.default_rng(seed)
    observed = abs(difference.sum())
    if not difference.any():
        return 1.0
    as_large = 0
    for block in _blocks(draws, len(difference)):
        signs = random.integers(0, 2, size=(block, len(difference)), dtype=np.int8) * np.int8(2) - np.int8(1)
        # A hair of slack, since sums of the same numbers in another order differ in their last bits.
        as_large += int((np.abs(signs @ difference) >= observed * (1 - 1e-12)).sum())
    return (as_large + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979)."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def _blocks(draws: int, number: int) -> list[int]:
    size = max(1, BLOCK_NUMBERS // max(1, number))
    return [min(size, draws - first) for first in range(0, draws, size)]
