"""A post-norm Transformer encoder for many short sequences.

M sequences, L positions, D dim. Computes what torch.nn.TransformerEncoder does (ReLU, no positions).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eupmim_dist.models.layers.attention import multi_head_attention
from eupmim_dist.models.layers.dropout import Dropout, keep_mask


class SelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.p = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.qkv.weight)  # as torch.nn.MultiheadAttention
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mixed = multi_head_attention(self.qkv(x), mask, self.num_heads, self.p if self.training else 0.0)
        return self.out(mixed)


class ReLUDropout(Dropout):
    """Dropout of relu(x), on a CPU with one pass less each way."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.p and x.device.type == "cpu":
            dropped: Tensor = _CPUReLUDropout.apply(x, self.p)
            return dropped
        return super().forward(F.relu(x))


class _CPUReLUDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        out = keep_mask(x, p).mul_(x).relu_()  # the factors are not negative
        ctx.save_for_backward(out)
        ctx.scale = 65536.0 / (65536 - round(p * 65536))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [out] = ctx.saved_tensors
        # What came through is exactly what is positive.
        return torch.ops.aten.threshold_backward(gradients[0], out, 0).mul_(ctx.scale), None


class EncoderLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout, self.relu_dropout = Dropout(dropout), ReLUDropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        return self.norm2(x + self.dropout(self.linear2(self.relu_dropout(self.linear1(x)))))


class TransformerEncoder(nn.Module):
    def __init__(self, dim: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, num_heads, dropout) for _ in range(num_layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [M, L, D], mask [M, L] (1 for an item, 0 for padding) -> [M, L, D]."""
        for layer in self.layers:
            x = layer(x, mask)
        return x


class LinearEncoder(nn.Linear):
    """Each position by itself through one Linear(D, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)
