"""Dropout that is cheap on a CPU."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def keep_mask(like: Tensor, p: float) -> Tensor:
    """Dropout's factors for a CPU tensor: 0 with probability p, else 1 / (1 - p); float, the shape of `like`.

    torch draws one number an element on a CPU, serially, which is a quarter of a training step. Here one 64-bit
    draw decides four elements: sixteen bits each put the drop rate within 2**-17 of p, and the kept elements
    are scaled by the rate that is used. The draws follow from torch's generator, so `torch.manual_seed` fixes them.
    """
    dropped = round(p * 65536)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    generator = np.random.Generator(np.random.SFC64(seed))
    draws = generator.integers(0, 2**64 - 1, (like.numel() + 3) // 4, dtype=np.uint64, endpoint=True)
    keep = draws.view(np.uint16)[: like.numel()] >= dropped
    # By way of uint8, because torch converts bool to float without vector instructions.
    mask = torch.from_numpy(keep.view(np.uint8)).to(like.dtype)
    return mask.mul_(65536.0 / (65536 - dropped)).view(like.shape)


class Dropout(nn.Module):
    """torch.nn.Dropout with `keep_mask` on a CPU."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return x * keep_mask(x, self.p) if x.device.type == "cpu" else F.dropout(x, self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
