"""Ranges: the one rule for cutting one into parts (rows of a table, slots of a batch, users to rank), and the places of
many."""

import numpy as np


def block_range(total: int, index: int, num_blocks: int) -> tuple[int, int]:
    """First and past-the-last element of block `index`: ceil(total / num_blocks) each, the last ones shorter.

    It is also how DTensor's Shard(0) cuts a dimension, so a shard is a valid DTensor as it stands.
    """
    size = -(-total // num_blocks)
    return min(index * size, total), min((index + 1) * size, total)


def spans(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every place of each range: the number of the range, and the place; int64 both."""
    counts = stops - starts
    number = np.repeat(np.arange(len(counts)), counts)
    return number, np.arange(len(number)) + np.repeat(starts - np.cumsum(counts) + counts, counts)
