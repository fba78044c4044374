"""A causal pre-norm Transformer: every position sees itself and what came before it.

Padding has to be on the right: then no position of a history ever sees any, and no mask is needed.
M sequences, L positions, P of them asked for, D dim, h heads, d = D / h.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eupmim_dist.models.layers.attention import fused_attention, row_sums
from eupmim_dist.models.layers.dropout import Dropout, keep_mask

ROTATION_BASE = 10_000.0
"""As of RoFormer: the slowest pair of coordinates turns by less than a full circle in 60,000 places."""
BLOCK = 50
"""Queries at a time on a CPU, which skips most of what is masked, and what a block computes stays in the cache."""


def at_positions(x: Tensor, position: Tensor) -> Tensor:
    """x [M, L, D], int64 position [M, P] -> what x holds there, [M, P, D]."""
    return x.gather(1, position[..., None].expand(-1, -1, x.shape[2]))


def causal_attention(qkv: Tensor, num_heads: int, dropout: float) -> Tensor:
    """softmax(q k / sqrt(d)) v per head over the keys up to each query's position, dropout on the weights.

    qkv [M, L, 3D] holds queries, keys and values side by side -> [M, L, D]. On a GPU torch's fused kernel does it;
    its CPU kernel draws dropout serially and is slower without dropout too.
    """
    if qkv.device.type == "cpu" and qkv.dtype in (torch.float32, torch.float64):
        mixed: Tensor = _CPUCausalAttention.apply(qkv, num_heads, dropout)
        return mixed
    return fused_attention(qkv, num_heads, dropout)


class _CPUCausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, dropout: float) -> Tensor:
        num, length, width = qkv.shape
        head_dim = width // (3 * num_heads)
        heads = qkv.view(num, length, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4)
        packed = heads.clone(memory_format=torch.contiguous_format).view(3, num * num_heads, length, head_dim)
        query, key, value = packed
        query.mul_(1.0 / math.sqrt(head_dim))
        future = qkv.new_full((BLOCK, BLOCK), -math.inf).triu_(1)
        mixed, saved = torch.empty_like(query), []
        for first, stop in _blocks(length):
            scores = torch.bmm(query[:, first:stop], key[:, :stop].transpose(1, 2))
            scores[:, :, first:].add_(future[: stop - first, : stop - first])
            weights = scores.softmax(-1)
            keep = keep_mask(weights, dropout) if dropout else None
            applied = weights if keep is None else weights * keep
            mixed[:, first:stop] = torch.bmm(applied, value[:, :stop])
            saved += [weights, keep, applied]
        ctx.save_for_backward(packed, *saved)
        ctx.num_heads = num_heads
        return mixed.view(num, num_heads, length, head_dim).transpose(1, 2).reshape(num, length, width // 3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        packed, *saved = ctx.saved_tensors
        query, key, value = packed
        num, length, dim = gradients[0].shape
        head_dim = dim // ctx.num_heads
        mixed = gradients[0].view(num, length, ctx.num_heads, head_dim).transpose(1, 2).reshape(value.shape)
        out = torch.zeros_like(packed)
        for (first, stop), weights, keep, applied in zip(
            _blocks(length), saved[::3], saved[1::3], saved[2::3], strict=True
        ):
            upstream = mixed[:, first:stop]
            out[2, :, :stop].baddbmm_(applied.transpose(1, 2), upstream)
            scores = torch.bmm(upstream, value[:, :stop].transpose(1, 2))
            if keep is not None:
                scores.mul_(keep)
            scores.mul_(weights)
            scores.addcmul_(weights, row_sums(scores), value=-1.0)  # through the softmax
            out[0, :, first:stop] = torch.bmm(scores, key[:, :stop]).mul_(1.0 / math.sqrt(head_dim))
            out[1, :, :stop].baddbmm_(scores.transpose(1, 2), query[:, first:stop])
        spread = out.view(3, num, ctx.num_heads, length, head_dim).permute(1, 3, 0, 2, 4)
        return spread.reshape(num, length, 3 * dim), None, None


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(first, min(first + BLOCK, length)) for first in range(0, length, BLOCK)]


def rotated(qkv: Tensor, num_heads: int) -> Tensor:
    """Queries and keys with their places told by rotation (Su et al., "RoFormer", 2021), values as they are.

    Each pair of coordinates of a head is turned by an angle in proportion to the place, so a dot product of a query
    and a key depends on how far apart they stand, not on where. qkv [M, L, 3D] as for `causal_attention`, d even.
    """
    split = qkv.unflatten(2, (3, num_heads, -1))
    length, half = qkv.shape[1], split.shape[-1] // 2
    exact: Any = {"device": qkv.device, "dtype": torch.promote_types(qkv.dtype, torch.float32)}
    place = torch.arange(length, **exact)
    speed = ROTATION_BASE ** -(torch.arange(half, **exact) / half)
    angle = torch.outer(place, speed)[None, :, None, None]  # [1, L, 1, 1, d / 2]
    cos, sin = angle.cos().to(qkv.dtype), angle.sin().to(qkv.dtype)
    one, other = split[:, :, :2].chunk(2, dim=-1)
    turned = torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)
    return torch.cat([turned, split[:, :, 2:]], dim=2).flatten(2)


class CausalBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); the feed-forward is 4D wide, with GELU.

    `rotary`: attention knows how far apart two places are (`rotated`). `gated`: what is added to x is first weighted
    by 2 sigmoid(W x + b), coordinate by coordinate; W and b begin with zeros, that is without any effect.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float, *, rotary: bool = False, gated: bool = False) -> None:
        super().__init__()
        self.num_heads, self.rotary, self.dropout = num_heads, rotary, Dropout(dropout)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gate1 = Gate(dim) if gated else None
        self.gate2 = Gate(dim) if gated else None

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """x [M, L, D] -> [M, L, D], or only what stands at position [M, P] -> [M, P, D]."""
        qkv = self.qkv(self.norm1(x))
        if self.rotary:
            qkv = rotated(qkv, self.num_heads)
        mixed = causal_attention(qkv, self.num_heads, self.dropout.p if self.training else 0.0)
        if position is not None:
            x, mixed = at_positions(x, position), at_positions(mixed, position)
        x = self._added(x, self.dropout(self.out(mixed)), self.gate1)
        return self._added(x, self.dropout(self.linear2(F.gelu(self.linear1(self.norm2(x))))), self.gate2)

    @staticmethod
    def _added(x: Tensor, change: Tensor, gate: "Gate | None") -> Tensor:
        return x + (change if gate is None else change * gate(x))


class Gate(nn.Linear):
    """Factors of each coordinate in (0, 2), at first 1."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x).sigmoid()


class CausalTransformer(nn.Module):
    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        *,
        rotary: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CausalBlock(dim, num_heads, dropout, rotary=rotary, gated=gated) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """x [M, L, D] -> the last layer's normalised output, [M, L, D]; or what it is at position [M, P], [M, P, D]."""
        *below, last = self.layers
        for layer in below:
            x = layer(x)
        return self.norm(last(x, position))  # the last one is spared what nobody asks for
