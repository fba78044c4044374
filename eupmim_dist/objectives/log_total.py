"""The log of the sum of the exponentials of a query's scores of all items, without holding the scores.

They are computed a tile at a time, some queries by some items, and once more in the backward pass; on a CPU a tile
stays in a core's cache (docs/benchmarks/training.md has what that brings).

Q queries, K interests, c items of a block, D dim.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

TILES = {"cpu": (256, 1 << 18), "cuda": (1024, 1 << 24)}
"""By kind of device: queries of a tile, and scores of it; 1 MB beside a core's cache of 2 MB, or 64 MB."""


def tile_of(queries: Tensor) -> tuple[int, int]:
    """Of queries [Q, K, D], how many make a tile, and with how many items."""
    most, scores = TILES[queries.device.type]
    number = max(1, min(most, len(queries)))
    return number, max(1, scores // (number * queries.shape[1]))


def log_total(queries: Tensor, blocks: Sequence[Tensor], readout: str, temperature: float) -> Tensor:
    """log sum over items of exp(score / temperature) for queries [Q, K, D] and items in blocks [c, D], each as large as
    a tile has them: [Q] in the type of the queries; minus infinity where there is no item.

    The score of an item is the largest of its K dot products, whose gradient the first of equal ones has, or for
    read-out `logsumexp` their soft maximum (objectives/readout.py). Under autocast products are as narrow as it has
    them; everything is summed in the type of the queries.
    """
    total: Tensor = _LogTotal.apply(queries, readout == "logsumexp", temperature, *blocks)
    return total


class _LogTotal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, soft: bool, temperature: float, *blocks: Tensor) -> Tensor:
        kind = queries.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else queries.dtype
        total = queries.new_full((len(queries),), -torch.inf)
        for block in blocks:
            columns = block.to(narrow).T.contiguous()
            for part in _parts(queries):
                best = _best(_products(queries[part].to(narrow), columns, queries.dtype), soft)
                total[part] = torch.logaddexp(total[part], _over(best, temperature).logsumexp(1))
        ctx.save_for_backward(queries, total, *blocks)
        ctx.soft, ctx.temperature, ctx.narrow = soft, temperature, narrow
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, total, *blocks = ctx.saved_tensors
        upstream = gradients[0][:, None] / ctx.temperature
        of_queries, of_blocks = torch.zeros_like(queries), [torch.zeros_like(block) for block in blocks]
        for block, of_block in zip(blocks, of_blocks, strict=True):
            items = block.to(ctx.narrow)
            columns = items.T.contiguous()
            for part in _parts(queries):
                some = queries[part].to(ctx.narrow)
                products = _products(some, columns, queries.dtype)
                best = _best(products, ctx.soft)
                share = (_over(best, ctx.temperature) - total[part, None]).exp_().mul_(upstream[part])
                for interest, own in enumerate(_split(share, products, best, ctx.soft)):
                    _add_product(of_queries[part, interest], own.to(ctx.narrow), items)
                    _add_product(of_block, own.to(ctx.narrow).T, some[:, interest])
        return of_queries, None, None, *of_blocks


def _products(queries: Tensor, columns: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Of queries [q, K, D] and items [D, c]: [q, c] for each interest."""
    return [(of_interest @ columns).to(dtype) for of_interest in queries.unbind(1)]


def _best(products: list[Tensor], soft: bool) -> Tensor:
    """The largest dot product, or their soft maximum: [q, c]."""
    best = products[0]
    for other in products[1:]:
        best = torch.logaddexp(best, other) if soft else torch.maximum(best, other)
    return best


def _over(scores: Tensor, temperature: float) -> Tensor:
    return scores if temperature == 1 else scores / temperature


def _split(share: Tensor, products: list[Tensor], best: Tensor, soft: bool) -> Iterator[Tensor]:
    """What each interest has of the gradient [q, c] of what `_best` gave."""
    if len(products) == 1:
        yield share
        return
    for of_interest in products:
        if soft:
            yield of_interest.sub_(best).exp_().mul_(share)
        else:
            own = torch.where(of_interest == best, share, 0.0)
            share.sub_(own)
            yield own


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == out.dtype:
        out.addmm_(left, right)
    else:
        out.add_(left @ right)


def _parts(queries: Tensor) -> list[slice]:
    size, _ = tile_of(queries)
    return [slice(first, min(first + size, len(queries))) for first in range(0, len(queries), size)]
