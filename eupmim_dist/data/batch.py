"""What a model is fed: one rank's part of a global batch.

B samples of this rank, L history, N negatives, A attributes.
"""

from dataclasses import dataclass, fields, replace

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
        if device.type == "cpu":
            return self
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in held.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


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
