"""Which of many keys are distinct, and which are the same: int64 keys sorted once, on the CPU."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Which entries of a list belong to the same row: `order[starts[i]:starts[i+1]]` are those of row i."""

    order: Tensor  # int32, entries sorted by row; those without a row left out
    starts: Tensor  # int32 [rows]

    def to(self, device: torch.device) -> "Segments":
        return Segments(self.order.to(device, non_blocking=True), self.starts.to(device, non_blocking=True))


@dataclass(frozen=True)
class Distinct:
    keys: np.ndarray  # int64 [u], ascending
    inverse: np.ndarray  # int32 [n]
    order: np.ndarray  # int32, `Segments.order`
    starts: np.ndarray  # int32 [u]

    @property
    def segments(self) -> Segments:
        return Segments(torch.from_numpy(self.order), torch.from_numpy(self.starts))


def distinct(keys: np.ndarray, end: int) -> Distinct:
    """Sorts int64 keys in [0, end]; `end` itself stands for no row.

    Key and position are sorted as one number, which numpy does several times faster than an indirect sort.
    """
    bits = max(1, len(keys).bit_length())
    if end.bit_length() + bits > 63:
        raise OverflowError(f"{len(keys)} ids of {end} rows in one step are too many to be sorted")
    packed = keys << bits
    packed |= np.arange(len(keys))
    packed.sort()
    order = packed & ((1 << bits) - 1)
    packed >>= bits  # the keys, ascending
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(packed[1:], packed[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    found = packed[starts]
    inverse = np.empty(len(keys), dtype=np.int32)
    inverse[order] = first.cumsum(dtype=np.int32) - 1
    order, starts = order.astype(np.int32), starts.astype(np.int32)
    if len(found) and found[-1] == end:
        order, starts, found = order[: starts[-1]], starts[:-1], found[:-1]
    return Distinct(found, inverse, order, starts)
