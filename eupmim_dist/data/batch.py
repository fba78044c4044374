"""What a model is fed: one rank's part of a global batch.

B samples of this rank, L history, A attributes, P predictions per sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.data.blocks import block_range

NO_ROW = -1
"""An id that stands for no row: a lookup gives zeros and nothing is learned or sent for it."""


@dataclass(frozen=True)
class TensorFields:
    """A dataclass some of whose fields are tensors, or None."""

    def to(self, device: torch.device) -> Self:
        return self if device.type == "cpu" else self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """In page-locked memory, from where a GPU can fetch it while the host goes on."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor], **others: Any) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **changed, **others)


@dataclass(frozen=True)
class Batch(TensorFields):
    """What every task's batch has: tensors, sample first, and two numbers that are alike on every rank."""

    num_predictions: int
    """Of the global batch, over all ranks: what a mean is taken over."""
    capacity: int
    """At least as many as any rank has samples."""

    def __len__(self) -> int:
        raise NotImplementedError

    def micro_batch(self, index: int, number: int) -> Self:
        """Block `index` of `number` of this rank's samples; it may be empty."""
        first, stop = block_range(len(self), index, number)
        return self.samples(first, stop, capacity=-(-self.capacity // number))

    def samples(self, first: int, stop: int, **others: int) -> Self:
        """Samples first..stop-1 of this rank's."""
        return self._map(lambda tensor: tensor[first:stop], **others)


@dataclass(frozen=True)
class UserBatch(Batch):
    """Users with a history, and what they took next where it is to be learned. Int64 tensors."""

    user: Tensor  # [B], NO_ROW for a user without an id row
    attributes: Tensor  # [B, A]
    history: Tensor  # [B, L], oldest first, NO_ROW on the right
    position: Tensor  # [B, P], the last place of the history that each prediction knows; 0 where there is none
    target: Tensor | None = None  # [B, P], NO_ROW for no prediction; None where users are only ranked for
    counter: Tensor | None = None  # [B, P], a number of its own for each prediction of the training, for drawing

    def __len__(self) -> int:
        return len(self.user)


def histories(items: np.ndarray, starts: Tensor, cuts: Tensor, length: int) -> Tensor:
    """The last `length` items before each cut, oldest first, NO_ROW on the right: int64 [B, length].

    `items` is the store's flat array; `starts` [B] says where each user's sequence begins in it, `cuts` [B]
    how many of its items come before the cut.
    """
    taken = cuts.clamp(max=length)
    column = torch.arange(length)
    inside = column < taken[:, None]
    index = torch.where(inside, (starts + cuts - taken)[:, None] + column, 0)
    found = torch.from_numpy(items[index.numpy()].astype("int64"))
    return torch.where(inside, found, NO_ROW)


def last_position(history: Tensor) -> Tensor:
    """Where each history [B, L] ends, as `UserBatch.position` of one prediction each: [B, 1]."""
    return ((history != NO_ROW).sum(1, keepdim=True) - 1).clamp(min=0)
