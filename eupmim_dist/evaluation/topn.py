"""Exact top-N over a sharded catalogue.

The queries go to the shards; each rank keeps the best N of its own rows for every query and sends them back to
the query's rank, which merges W short lists. Excluded items are masked where they live, so N per rank are enough.
Memory of a rank, beyond its rows: two int64 per item of its own, scores of G queries x S lists x a block of items
(`item_block`), and G x S x N results.

b users of this rank, G = W * ceil(chunk / W) users of the chunk, S lists per user, N length of a list.
"""

import torch
from torch import Tensor

from eupmim_dist.data.heldout import HeldOut, Ragged
from eupmim_dist.evaluation.scorers.interface import Scorer, item_block
from eupmim_dist.parallel.collectives import all_gather, all_to_all
from eupmim_dist.parallel.world import World

NO_ITEM = -1
"""Fills a list when fewer than N items may be recommended."""
MARGIN = 16
"""Candidates beyond N that are scored again exactly: float32 rounding may misplace an item by a few ranks."""


def top_n(
    scorer: Scorer,
    users: HeldOut,
    excluded: Ragged,
    num: int,
    block: int,
    world: World,
    candidates: Ragged | None = None,
) -> tuple[Tensor, Tensor]:
    """The best `num` items of each list, best first, ties by smaller id: their scores, float64 [b, S, num], minus
    infinity past the end, and they themselves, int64 [b, S, num], NO_ITEM there.

    `block` is the most users that any rank has in this chunk. With `candidates`, as `Ragged.distinct` gives them,
    nothing else is ranked, excluded or not. Collective.
    """
    query = all_gather(_pad(scorer.query(users), block), world)
    gathered = _gather_pairs(excluded if candidates is None else candidates, block, world)
    if candidates is None:
        scores, positions = _exactly(scorer, query, *_local_best(scorer, query, gathered, num + MARGIN), num)
    else:
        scores, positions = _best_candidates(scorer, query, gathered, num)
    ids = _take(scorer.item_ids, positions)
    if world.size > 1:
        scores, ids = (_to_owner(part, block, world) for part in (scores, ids))
        scores, ids = best_of(scores, ids, num)
    number = len(users)
    return scores[:number], ids.masked_fill(scores == -torch.inf, NO_ITEM)[:number]


def gather_rows(own: Tensor, block: int, world: World) -> Tensor:
    """[b, ...] of each rank, b <= block -> those of all users of the chunk in their order, on every rank."""
    device = own.device
    number = torch.tensor([len(own)], device=world.device)
    counts = all_gather(number, world).tolist()
    parts = all_gather(_pad(own.to(world.device), block), world).split(block)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(device)


def best_of(scores: Tensor, ids: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The `num` best of the last dimension by falling score, ties by smaller id."""
    by_id = ids.argsort(dim=-1)
    scores, ids = scores.gather(-1, by_id), ids.gather(-1, by_id)
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :num]
    return scores.gather(-1, order), ids.gather(-1, order)


def _local_best(scorer: Scorer, query: Tensor, excluded: Ragged, num: int) -> tuple[Tensor, Tensor]:
    """Best `num` of this rank's items: scores and positions [G, S, num], -inf past the end."""
    num_items = len(scorer.item_ids)
    position = torch.searchsorted(scorer.item_ids, excluded.item)
    owned = _take(scorer.item_ids, position) == excluded.item
    best: tuple[Tensor, Tensor] | None = None
    block = item_block(query)
    for start in range(0, max(num_items, 1), block):
        stop = min(start + block, num_items)
        scores = scorer.scores(query, start, stop)
        here = owned & (position >= start) & (position < stop)
        scores.transpose(1, 2)[excluded.user[here], position[here] - start] = -torch.inf
        found = _block_best(scores, start, num)
        if best is not None:
            found = best_of(torch.cat([best[0], found[0]], -1), torch.cat([best[1], found[1]], -1), num)
        best = found
    assert best is not None
    return best


def _best_candidates(scorer: Scorer, query: Tensor, candidates: Ragged, num: int) -> tuple[Tensor, Tensor]:
    """Best `num` of those candidates that are this rank's items: exact scores and positions [G, S, num]."""
    place = torch.searchsorted(scorer.item_ids, candidates.item)
    own = _take(scorer.item_ids, place) == candidates.item
    user, place = candidates.user[own], place[own]
    counts = torch.bincount(user, minlength=len(query))
    column = torch.arange(len(user), device=user.device) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    width = max(num, int(counts.max())) if len(counts) else num
    positions = torch.full((len(query), 1, width), len(scorer.item_ids), device=query.device)
    positions[user, 0, column] = place
    if not len(scorer.item_ids):
        return torch.full(positions.shape, -torch.inf, dtype=torch.float64, device=query.device), positions
    scores = scorer.exact(query, positions.clamp(max=len(scorer.item_ids) - 1))
    return best_of(scores.masked_fill(positions == len(scorer.item_ids), -torch.inf), positions, num)


def _take(item_ids: Tensor, positions: Tensor) -> Tensor:
    """The ids at some positions; NO_ITEM past the last one."""
    if not len(item_ids):
        return torch.full_like(positions, NO_ITEM)
    return item_ids[positions.clamp(max=len(item_ids) - 1)].masked_fill(positions >= len(item_ids), NO_ITEM)


def _exactly(scorer: Scorer, query: Tensor, scores: Tensor, positions: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The best `num` of the candidates [G, S, n] by their exact scores; what has no score stays without."""
    if scores.dtype != torch.float64 and len(scorer.item_ids):
        exact = scorer.exact(query, positions.clamp(max=len(scorer.item_ids) - 1))
        scores = exact.masked_fill(scores == -torch.inf, -torch.inf)
    return best_of(scores.double(), positions, num)


def _block_best(scores: Tensor, start: int, num: int) -> tuple[Tensor, Tensor]:
    if scores.shape[-1] <= num:
        ids = torch.arange(start, start + num, device=scores.device).expand(*scores.shape[:-1], num)
        return best_of(torch.nn.functional.pad(scores, (0, num - scores.shape[-1]), value=-torch.inf), ids, num)
    values, columns = scores.topk(num + 1, dim=-1)
    # topk takes any of several equal scores; where equal ones straddle the end of the list, sort to take the first.
    cut = (values[..., num - 1] == values[..., num]) & (values[..., num] != -torch.inf)
    values, columns = values[..., :num], columns[..., :num]
    if cut.any():
        order = scores[cut].argsort(dim=-1, descending=True, stable=True)[:, :num]
        columns[cut] = order
    return best_of(values, columns + start, num)


def _pad(tensor: Tensor, length: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(length - len(tensor), *tensor.shape[1:])])


def _gather_pairs(pairs: Ragged, block: int, world: World) -> Ragged:
    """Every rank's pairs, a user's position counted through the ranks' blocks of `block` users."""
    if world.size == 1:
        return Ragged(pairs.user.to(world.device), pairs.item.to(world.device))
    both = torch.stack([pairs.user + world.rank * block, pairs.item], dim=1).to(world.device)
    counts = all_gather(torch.tensor([len(both)], device=world.device), world)
    longest = int(counts.max())
    filled = all_gather(_pad(both, longest), world).view(world.size, longest, 2)
    kept = filled[torch.arange(longest, device=world.device) < counts[:, None]]
    return Ragged(*kept.T.contiguous())


def _to_owner(tensor: Tensor, block: int, world: World) -> Tensor:
    """Each rank's results [G, S, N] -> the W results for this rank's queries, [block, S, W * N]."""
    by_rank = all_to_all(tensor, world).view(world.size, block, *tensor.shape[1:])
    return by_rank.permute(1, 2, 0, 3).flatten(2)
