"""Attention of T5's encoder on a CPU, few samples at a time, so that their scores stay in the cache.

torch's fused kernels have no gradient of the bias for relative positions on a CPU; what it does instead keeps some ten
tensors of all scores. Here none is kept: the backward pass computes them again. With direct prompts, of 400 tokens,
those tensors are most of a training step (`bench elmrec`).

B samples, H heads, Q and K tokens, d width of a head.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NAME = "few_samples_at_a_time"
"""By which transformers knows it."""
AT_A_TIME = 1 << 18
"""Scores of a block, if it is not of one sample: 1 MiB in float32."""
MOST = 1 << 16
"""Numbers that a draw for dropout is one of."""


class _Attention(torch.autograd.Function):
    """softmax(q k^T + bias, -inf where not `seen`) v, with dropout of the weights."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, seen: Tensor | None, dropout: float) -> Tensor:
        """q [B, H, Q, d], k and v [B, H, K, d], bias [H, Q, K], seen bool [B, 1 or Q, K] -> [B, H, Q, d]."""
        seed = int(torch.randint(1 << 62, ())) if dropout else 0
        drawn = _Draws(seed, dropout)
        found, logs = torch.empty_like(q), bias.new_empty(*q.shape[:3], 1)
        with torch.autocast("cpu", enabled=False):
            for some in _blocks(bias, len(q)):
                scores = _scores(q[some], k[some], bias, None if seen is None else seen[some])
                most = scores.amax(-1, keepdim=True)
                weights = scores.sub_(most).exp_()
                total = weights.sum(-1, keepdim=True)
                logs[some] = total.log() + most
                weights.div_(total)
                if dropout:
                    weights.mul_(drawn.kept(weights))
                found[some] = weights.to(v.dtype) @ v[some]
        ctx.save_for_backward(q, k, v, bias, seen, found, logs)
        ctx.seed, ctx.dropout = seed, dropout
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_found: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, seen, found, logs = ctx.saved_tensors
        drawn = _Draws(ctx.seed, ctx.dropout)
        of_q, of_k, of_v = (torch.empty_like(of) for of in (q, k, v))
        of_bias = torch.zeros_like(bias)
        # Of the weights of a query, each times its gradient.
        totals = (of_found * found).sum(-1, keepdim=True, dtype=bias.dtype)
        with torch.autocast("cpu", enabled=False):
            for some in _blocks(bias, len(q)):
                scores = _scores(q[some], k[some], bias, None if seen is None else seen[some])
                weights = scores.sub_(logs[some]).exp_()
                of_weights = (of_found[some] @ v[some].transpose(2, 3)).to(bias.dtype)
                used = weights
                if ctx.dropout:
                    kept = drawn.kept(weights)
                    used = weights * kept
                    of_weights.mul_(kept)
                of_v[some] = used.to(v.dtype).transpose(2, 3) @ of_found[some]
                of_scores = of_weights.sub_(totals[some]).mul_(weights)
                of_bias += of_scores.sum(0)
                of_scores = of_scores.to(q.dtype)
                of_q[some] = of_scores @ k[some]
                of_k[some] = of_scores.transpose(2, 3) @ q[some]
        return of_q, of_k, of_v, of_bias, None, None


class _Draws:
    """What dropout leaves of one block's weights after another: a function of the seed, so that nothing need be kept.

    numpy's generator takes a fraction of the time of torch's on a CPU, where the draws would be most of an attention.
    """

    def __init__(self, seed: int, dropout: float) -> None:
        self.generator = np.random.Generator(np.random.SFC64(seed))
        self.dropped = round(dropout * MOST)

    def kept(self, weights: Tensor) -> Tensor:
        """Zeros where one is dropped, 1 / (1 - dropout) where not."""
        drawn = torch.from_numpy(self.generator.integers(0, MOST, weights.shape, dtype=np.uint16).view(np.int16))
        left = drawn >= self.dropped - MOST // 2  # all of int16 alike
        return left.to(weights.dtype).mul_(MOST / (MOST - self.dropped))


def _blocks(bias: Tensor, number: int) -> list[slice]:
    """Samples whose scores fit the cache together, as texts of few tokens do; at least one."""
    size = max(1, AT_A_TIME // bias.numel())
    return [slice(first, first + size) for first in range(0, number, size)]


def _scores(q: Tensor, k: Tensor, bias: Tensor, seen: Tensor | None) -> Tensor:
    """Of a block of b samples: [b, H, Q, K], of the bias' type also where q and k are of a short one: T5's products are
    not scaled, and large."""
    scores = (q.to(bias.dtype) @ k.to(bias.dtype).transpose(2, 3)).add_(bias)
    return scores if seen is None else scores.masked_fill_(~seen[:, None], -torch.inf)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [B, H, Q, d], mask bool [B, 1, 1 or Q, K], position_bias [1, H, Q, K] ->
    [B, Q, H, d]. Each query sees a key. On a GPU torch's own, which has the gradient of a bias there."""
    if query.device.type != "cpu" or position_bias is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, mask, dropout, scaling, position_bias=position_bias, **others
        )
        return found
    assert scaling == 1.0, "T5 does not scale its products"
    seen = None if mask is None else mask[:, 0]
    attended = _Attention.apply(query, key, value, position_bias[0].contiguous(), seen, dropout)
    return attended.transpose(1, 2).contiguous(), None


def register(transformers: Any) -> None:
    """Has transformers know `attend` by its NAME."""
    from transformers.masking_utils import sdpa_mask

    transformers.AttentionInterface.register(NAME, attend)
    transformers.AttentionMaskInterface.register(NAME, sdpa_mask)
