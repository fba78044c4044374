"""Dropout that is cheap on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """As torch.nn.Dropout, but on a CPU one 64-bit draw decides four elements.

    torch draws one number an element there, serially: a quarter of a training step. Sixteen bits an element
    put the drop rate within 2**-17 of `p`; the kept elements are scaled by the rate that is used.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._dropped = round(p * 65536)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p, training=True)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        levels = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = levels >= self._dropped - 32768
        return x * (keep * (65536.0 / (65536 - self._dropped)))

    def extra_repr(self) -> str:
        return f"p={self.p}"
