"""Streams of row ids that the benchmarks look up: a function of (seed, rank, step) and of nothing else."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.data.counter import permute, stream_key

IdKind = Literal["zipf", "uniform"]
ZIPF_EXPONENT = 1.2


def random_ids(
    kind: IdKind, rows: int, num_samples: int, ids_per_sample: int, seed: int, rank: int, step: int
) -> Tensor:
    """Row ids in [0, rows), int64 [num_samples, ids_per_sample].

    `zipf`: the k-th most popular row has a probability proportional to k**-1.2, k from 1 to `rows`; which row is
    the k-th is a fixed permutation, so that popular rows lie all over the table. `uniform`: all alike.
    """
    generator = np.random.default_rng([seed, rank, step])
    wanted = num_samples * ids_per_sample
    if kind == "uniform":
        ids = torch.from_numpy(generator.integers(0, rows, wanted))
    else:
        # Neither a cumulative distribution nor a list of the permuted rows: both would be as long as the table.
        ids = permute(stream_key(seed, "popularity"), torch.from_numpy(_bounded_zipf(generator, rows, wanted)), rows)
    return ids.view(num_samples, ids_per_sample)


def _bounded_zipf(generator: np.random.Generator, rows: int, wanted: int) -> np.ndarray:
    """Ranks of popularity from 0: numpy's unbounded distribution, drawn again where it exceeds the table."""
    drawn = np.empty(0, np.int64)
    while len(drawn) < wanted:
        more = generator.zipf(ZIPF_EXPONENT, wanted)
        drawn = np.concatenate([drawn, more[more <= rows]])
    return drawn[:wanted] - 1
