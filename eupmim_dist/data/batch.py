"""What a model is fed: one rank's part of a global batch.

B samples of this rank, L history, N negatives, A attributes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NO_ROW = -1
"""An id that stands for no row: a lookup gives zeros and nothing is learned or sent for it."""


@dataclass(frozen=True)
class Batch:
    """Int64 tensors, B first. `target` and `negatives` are absent where users are only ranked for."""

    user: Tensor  # [B], NO_ROW for a user without an id row
    attributes: Tensor  # [B, A]
    history: Tensor  # [B, L], oldest first, NO_ROW on the right
    target: Tensor | None = None  # [B]
    negatives: Tensor | None = None  # [B, N]
    global_size: int = 0  # samples of all ranks together

    def to(self, device: torch.device) -> "Batch":
        return self if device.type == "cpu" else self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """In page-locked memory, from where a GPU can fetch it while the host goes on."""
        return self._map(Tensor.pin_memory)

    def part(self, start: int, stop: int) -> "Batch":
        """Samples start..stop-1 of this rank's."""
        return self._map(lambda tensor: tensor[start:stop])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            user=change(self.user),
            attributes=change(self.attributes),
            history=change(self.history),
            target=None if self.target is None else change(self.target),
            negatives=None if self.negatives is None else change(self.negatives),
            global_size=self.global_size,
        )


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
