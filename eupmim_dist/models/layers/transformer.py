"""A post-norm Transformer encoder for many short sequences.

M sequences, L positions, D dim, h heads. Computes what torch.nn.TransformerEncoder does (ReLU, no positions),
with dropout that is cheap on a CPU and without its checks for nested tensors.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eupmim_dist.models.layers.dropout import Dropout
from eupmim_dist.models.layers.softmax import short_softmax

MASKED = -1e9
"""Score of a padded position: its weight becomes 0, and a row of padding alone stays finite."""


class SelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        nn.init.xavier_uniform_(self.qkv.weight)  # as torch.nn.MultiheadAttention
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [M, L, D], bias [M, 1, 1, L] added to the scores -> [M, L, D]."""
        num, length, dim = x.shape
        head_dim = dim // self.num_heads
        qkv = self.qkv(x).view(num, length, 3, self.num_heads, head_dim).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        scores = (query @ key.transpose(-1, -2)) * (1.0 / math.sqrt(head_dim)) + bias
        mixed = self.dropout(short_softmax(scores)) @ value
        return self.out(mixed.transpose(1, 2).reshape(num, length, dim))


class EncoderLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, bias)))
        hidden = self.dropout(F.relu(self.linear1(x)))
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class TransformerEncoder(nn.Module):
    def __init__(self, dim: int, num_layers: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, num_heads, dropout) for _ in range(num_layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [M, L, D], mask [M, L] (1 for an item, 0 for padding) -> [M, L, D]."""
        bias = torch.where(mask > 0, 0.0, MASKED).to(x.dtype)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, bias)
        return x


class LinearEncoder(nn.Linear):
    """Each position by itself through one Linear(D, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)
