"""The log of the sum of the exponentials of a query's scores of all items, without holding the scores.

They are computed a tile at a time, some queries by some items, and once more in the backward pass; on a CPU a tile
stays in a core's cache (docs/benchmarks/training.md has what that brings).

Q queries, K interests, c items of a block, D dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TILES = {"cpu": (64, 1 << 18), "cuda": (1024, 1 << 24)}
"""By kind of device: queries of a tile, and scores of it; 1 MB beside a core's cache of 2 MB, or 64 MB."""


@dataclass(frozen=True)
class Tiling:
    queries: int
    items: int


def tiling(queries: Tensor) -> Tiling:
    """For queries [Q, K, D]."""
    most, scores = TILES[queries.device.type]
    number = max(1, min(most, len(queries)))
    return Tiling(number, max(1, scores // (number * queries.shape[1])))


def log_total(queries: Tensor, blocks: Sequence[Tensor], readout: str, temperature: float, tile: Tiling) -> Tensor:
    """log sum over items of exp(score / temperature) for queries [Q, K, D] and items in blocks [c, D] of at most
    `tile.items`: [Q] in the type of the queries; minus infinity where there is no item.

    The score of an item is the largest of its K dot products, or for read-out `logsumexp` their soft maximum
    (objectives/readout.py). Equal largest ones share the gradient. Under autocast products are as narrow as autocast
    has them; everything is summed in the type of the queries.
    """
    total: Tensor = _LogTotal.apply(queries, readout == "logsumexp", temperature, tile, *blocks)
    return total


class _LogTotal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, soft: bool, temperature: float, tile: Tiling, *blocks: Tensor) -> Tensor:
        kind = queries.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        total = queries.new_full((len(queries),), -torch.inf)
        for block in blocks:
            columns = block.T.contiguous()
            for part in _spans(len(queries), tile.queries):
                best = _best(_products(queries[part], columns), soft).div_(temperature)
                peak = best.amax(1)
                summed = best.sub_(peak[:, None]).exp_().sum(1)
                total[part] = torch.logaddexp(total[part], summed.log_().add_(peak))
        ctx.save_for_backward(queries, total, *blocks)
        ctx.soft, ctx.temperature, ctx.tile, ctx.narrow = soft, temperature, tile, narrow
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, total, *blocks = ctx.saved_tensors
        upstream = gradients[0][:, None] / ctx.temperature
        of_queries, of_blocks = torch.zeros_like(queries), [torch.zeros_like(block) for block in blocks]
        with torch.autocast(queries.device.type, ctx.narrow, enabled=ctx.narrow is not None):
            for block, of_block in zip(blocks, of_blocks, strict=True):
                columns = block.T.contiguous()
                for part in _spans(len(queries), ctx.tile.queries):
                    scores = _products(queries[part], columns)
                    best = _best(scores, ctx.soft)
                    share = (best / ctx.temperature).sub_(total[part, None]).exp_().mul_(upstream[part])
                    for interest, own in enumerate(_split(share, scores, best, ctx.soft)):
                        of_queries[part, interest] += own @ block
                        of_block += own.T @ queries[part, interest]
        return of_queries, None, None, None, *of_blocks


def _products(queries: Tensor, columns: Tensor) -> list[Tensor]:
    """Of queries [q, K, D] and items [D, c]: [q, c] for each interest, in the type of the queries."""
    return [(of_interest @ columns).to(queries.dtype) for of_interest in queries.unbind(1)]


def _best(products: list[Tensor], soft: bool) -> Tensor:
    """The largest dot product, or their soft maximum: a new tensor [q, c]."""
    best = products[0].clone()
    for other in products[1:]:
        (torch.logaddexp if soft else torch.maximum)(best, other, out=best)
    return best


def _split(share: Tensor, products: list[Tensor], best: Tensor, soft: bool) -> Iterator[Tensor]:
    """What each interest has of the gradient [q, c] of what `_best` gave."""
    if len(products) == 1:
        yield share
    elif soft:
        for of_interest in products:
            yield of_interest.sub_(best).exp_().mul_(share)
    else:
        largest = [of_interest == best for of_interest in products]
        share.div_(torch.stack(largest).sum(0))
        for is_largest in largest:
            yield torch.where(is_largest, share, 0.0)


def _spans(number: int, most: int) -> list[slice]:
    return [slice(first, min(first + most, number)) for first in range(0, number, most)]
