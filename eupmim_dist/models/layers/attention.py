"""Attention over many short sequences.

On a GPU torch's fused kernel does it. Its CPU kernels lose most of their time on such sizes: softmax goes row by
row, every head is copied several times, and dropout draws serially. So on a CPU the forward and backward are
written out: packed once, softmax and dropout in place. M sequences, L positions, D dim, h heads, d = D / h.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eupmim_dist.models.layers.dropout import keep_mask

MASKED = -1e9
"""Score of a padded position: its weight becomes 0, and a row of padding alone stays finite."""
LOWEST = -80.0
"""Score below the largest of its row from which on a weight is 0; exp(-80) is 2e-35."""
MOST_SEQUENCES = 65_535
"""Sequences given to torch's fused kernels at a time: the memory-efficient one takes no more, having dropout."""


def multi_head_attention(qkv: Tensor, mask: Tensor, num_heads: int, dropout: float) -> Tensor:
    """softmax(q k / sqrt(d)) v per head, padded keys left out, dropout on the weights.

    qkv [M, L, 3D] holds queries, keys and values side by side; mask [M, L] is 1 for an item -> [M, L, D].
    """
    if qkv.device.type == "cpu" and qkv.dtype in (torch.float32, torch.float64):
        mixed: Tensor = _CPUAttention.apply(qkv, mask, num_heads, dropout)
        return mixed
    bias = torch.where(mask > 0, 0.0, MASKED).to(qkv.dtype)[:, None, None, :]
    return fused_attention(qkv, num_heads, dropout, bias)


def fused_attention(qkv: Tensor, num_heads: int, dropout: float, bias: Tensor | None = None) -> Tensor:
    """Attention by torch's fused kernels: qkv [M, L, 3D] -> [M, L, D].

    `bias` [M, 1, 1, L] is added to the scores; without it, each position sees itself and those before it.
    """
    if not len(qkv):  # which not all of the kernels take
        return qkv[..., : qkv.shape[2] // 3]
    mixed = []
    for first in range(0, len(qkv), MOST_SEQUENCES):
        some = slice(first, first + MOST_SEQUENCES)
        query, key, value = qkv[some].unflatten(2, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
        part = None if bias is None else bias[some]
        mixed.append(
            F.scaled_dot_product_attention(query, key, value, attn_mask=part, dropout_p=dropout, is_causal=bias is None)
        )
    whole = mixed[0] if len(mixed) == 1 else torch.cat(mixed)  # which would copy a single one too
    return whole.transpose(1, 2).flatten(2)


class _CPUAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, mask: Tensor, num_heads: int, dropout: float) -> Tensor:
        num, length, width = qkv.shape
        head_dim = width // (3 * num_heads)
        heads = qkv.view(num, length, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4)
        packed = heads.clone(memory_format=torch.contiguous_format).view(3, num * num_heads, length, head_dim)
        query, key, value = packed
        query.mul_(1.0 / math.sqrt(head_dim))
        scores = torch.bmm(query, key.transpose(1, 2))
        scores.view(num, num_heads, length, length).add_(((1 - mask) * MASKED)[:, None, None, :])
        weights = softmax_(scores)
        keep = keep_mask(weights, dropout) if dropout else None
        applied = weights if keep is None else weights * keep
        mixed = torch.bmm(applied, value).view(num, num_heads, length, head_dim).transpose(1, 2)
        ctx.save_for_backward(packed, weights, keep, applied)
        ctx.num_heads = num_heads
        return mixed.reshape(num, length, width // 3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        packed, weights, keep, applied = ctx.saved_tensors
        query, key, value = packed
        num, length, dim = gradients[0].shape
        head_dim = dim // ctx.num_heads
        mixed = gradients[0].view(num, length, ctx.num_heads, head_dim).transpose(1, 2).reshape(value.shape)
        out = torch.empty_like(packed)
        torch.bmm(applied.transpose(1, 2), mixed, out=out[2])
        scores = torch.bmm(mixed, value.transpose(1, 2))
        if keep is not None:
            scores.mul_(keep)
        scores.mul_(weights)
        scores.addcmul_(weights, row_sums(scores), value=-1.0)  # through the softmax
        torch.bmm(scores, key, out=out[0]).mul_(1.0 / math.sqrt(head_dim))
        torch.bmm(scores.transpose(1, 2), query, out=out[1])
        spread = out.view(3, num, ctx.num_heads, length, head_dim).permute(1, 3, 0, 2, 4)
        return spread.reshape(num, length, 3 * dim), None, None, None


def softmax_(scores: Tensor) -> Tensor:
    """In-place softmax over a short last dimension.

    A CPU's exp is ten times slower where it underflows, as at what is MASKED: there it is given what does not, and what
    that leaves is as nothing.
    """
    scores.sub_(scores.amax(-1, keepdim=True)).clamp_(min=LOWEST).exp_()
    F.threshold(scores, 2 * math.exp(LOWEST), 0.0, inplace=True)
    return scores.div_(row_sums(scores))


def row_sums(x: Tensor) -> Tensor:
    """Sums over the last dimension, kept; a product with ones beats a sum of a few elements."""
    return x @ x.new_ones(x.shape[-1], 1)
