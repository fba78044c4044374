"""Sums over all ranks of what each has whole: gradients of rows that every rank holds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eupmim_dist.parallel.exchange import Exchange
from eupmim_dist.parallel.route import Level, Route


def add_up(tensor: Tensor, exchange: Exchange, route: Route) -> None:
    """Sums [n, ...] over the ranks in place, alike on all bit by bit; collective.

    By two levels each rank of a node sums a part of what its ranks have, then the nodes' sums of that, and so a node
    sends the others 2 (N - 1) / N of the tensor; by one a ring's all-reduce sends 2 (W - 1) / W. N nodes, W ranks.
    """
    if len(route.levels) == 1:
        exchange.all_reduce("replicated", tensor)
    else:
        _add_up(tensor, exchange, route.levels)


def _add_up(tensor: Tensor, exchange: Exchange, levels: Sequence[Level]) -> None:
    rank, peers = exchange.world.rank, levels[0].peers
    nothing = tensor[:0]
    parts = [nothing] * exchange.world.size
    for peer, part in zip(peers, tensor.tensor_split(len(peers)), strict=True):
        parts[peer] = part
    mine = parts[rank]
    received = [torch.empty_like(mine) if peer in peers and peer != rank else nothing for peer in range(len(parts))]
    with exchange.receiving("replicated", [received]) as send:
        send([parts])
    for peer in peers:
        if peer != rank:
            mine += received[peer]
    if len(levels) > 1:
        _add_up(mine, exchange, levels[1:])
    with exchange.receiving("replicated", [parts]) as send:
        send([[mine if peer in peers else nothing for peer in range(len(parts))]])
