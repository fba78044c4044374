"""What a step will exchange: which distinct rows this rank wants of which rank, and which ones are wanted of it.

Plans are made on the CPU, over gloo, also on machines with GPUs: they need the sampled ids and nothing a step
computes, so they can be made ahead (prefetch.py), and the step itself never waits for a size.

They follow a route (route.py): at each of its levels a rank asks some others for distinct rows and is asked by them.

n uses of rows on this rank, u distinct ones among them, W ranks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.models.interface import Uses
from eupmim_dist.parallel.distinct import Distinct, Segments, distinct
from eupmim_dist.parallel.exchange import Exchange
from eupmim_dist.parallel.placement import TableGroup
from eupmim_dist.parallel.route import Level, Route
from eupmim_dist.parallel.world import World

Placement = Literal["alone", "sharded", "replicated"]
"""Where a group's rows are: on the only rank, each on one of several, or all of them on every one."""
PROBLEMS = {error.__name__: error for error in (IndexError, KeyError, TypeError)}


@dataclass(frozen=True)
class UseBlock:
    """The uses of one table in one micro-batch that have as many samples: their ids lie side by side, sample by sample.

    So one copy of rows serves them all, and a row's gradients are summed in the order of the samples.
    """

    micro_batch: int
    samples: int
    uses: dict[str, torch.Size]  # name -> shape of its ids

    @property
    def widths(self) -> list[int]:
        """How many ids of a sample each use has."""
        return [prod(shape[1:]) for shape in self.uses.values()]


@dataclass(frozen=True, kw_only=True)
class Hop:
    """What a rank asks for at one level, and is asked for. A list `by rank` has an entry for each of the W, in turn.

    Rows asked for stand in this rank's tensor; at all levels but the last, among those that it asks for at the next.
    """

    sent: list[int]  # by rank: how many distinct rows this rank wants of each
    own: Tensor  # int [sent[rank]], where those stand that it wants of itself
    received: list[int]  # by rank: how many rows each wants of this one, itself included
    asked: Tensor  # int, where those stand that the others want, rank after rank
    merge: Segments | None = None  # sharded only: gradients of asked, then own -> distinct ones among them


@dataclass(frozen=True, kw_only=True)
class GroupPlan:
    """One group's part of a plan."""

    blocks: list[UseBlock]  # in the order of `inverse`
    inverse: Tensor  # int32 [n], the distinct row of each use; u where it has none
    merge: Segments  # uses -> distinct rows, ordered by the rank that is asked for them
    hops: list[Hop]  # one for each level of the route; only one unless sharded
    rows: Tensor  # int64 ascending, distinct rows of this rank's tensor that are asked for: what it will update
    placement: Placement
    in_union: Tensor | None = None  # replicated only: int64 [u], where this rank's distinct rows stand in `rows`


@dataclass(frozen=True)
class Plan:
    groups: list[GroupPlan]
    num_micro_batches: int
    requests: dict[str, int]  # rows wanted of this rank, by table
    stop: bool  # whether any rank asks to stop, alike on all

    @property
    def sharded(self) -> list[int]:
        """The groups whose rows are exchanged: none if there is one rank."""
        return [number for number, group in enumerate(self.groups) if group.placement == "sharded"]

    @property
    def num_levels(self) -> int:
        return max((len(group.hops) for group in self.groups), default=0)


def pinned(value: Any) -> Any:
    """The same with every tensor in it in page-locked memory, from where a GPU can fetch it while the host goes on."""
    if isinstance(value, Tensor):
        return value.pin_memory()
    if isinstance(value, list):
        return [pinned(each) for each in value]
    if isinstance(value, dict):
        return {key: pinned(each) for key, each in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: pinned(getattr(value, field.name)) for field in fields(value)})
    return value


def make_plan(
    groups: Sequence[TableGroup], micro_batches: Sequence[Uses], route: Route, exchange: Exchange, stop: bool = False
) -> Plan:
    """Plans the look-up of several micro-batches at once; collective.

    `stop` tells the other ranks that this one asks to stop, which costs nothing here.

    Raises, on every rank: IndexError for an id outside its table, TypeError for ids that are not int64,
    KeyError for a table that is not among `groups`. The message names the rank.
    """
    blocks: list[list[UseBlock]] = [[] for _ in groups]
    keys: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in groups]
    problem: Exception | None = None
    try:
        for number, uses in enumerate(micro_batches):
            for (table, samples), together in _side_by_side(uses).items():
                place = _group_of(groups, table)
                columns = [
                    _checked_keys(groups[place], table, ids, route).reshape(samples, prod(ids.shape[1:]))
                    for ids in together.values()
                ]
                keys[place].append((columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)).reshape(-1))
                blocks[place].append(UseBlock(number, samples, {name: ids.shape for name, ids in together.items()}))
        every = [np.concatenate(k) if len(k) > 2 else k[-1] for k in keys]
        found = [distinct(k, group.end) for group, k in zip(groups, every, strict=True)]
    except Exception as error:  # whatever it is, the other ranks must hear of it
        problem, found = error, [distinct(k[0], group.end) for group, k in zip(groups, keys, strict=True)]
    plans = [_local_plan(*of_group, exchange.world) for of_group in zip(blocks, found, strict=True)]
    if exchange.world.size > 1:
        stop = _plan_with_others(plans, groups, found, problem, stop, route, exchange)
    elif problem is not None:
        raise problem
    requests: dict[str, int] = {}
    for group, plan in zip(groups, plans, strict=True):
        requests |= _requests(group, plan)
    return Plan(plans, len(micro_batches), requests, stop)


def _side_by_side(uses: Uses) -> dict[tuple[str, int], dict[str, Tensor]]:
    """(table, number of samples) -> its uses, in the order in which they are named."""
    found: dict[tuple[str, int], dict[str, Tensor]] = {}
    for name, (table, ids) in uses.items():
        found.setdefault((table, len(ids) if ids.dim() else 1), {})[name] = ids
    return found


def _local_plan(blocks: list[UseBlock], found: Distinct, world: World) -> GroupPlan:
    """Where this rank holds all rows itself: nothing to exchange, nothing to merge a second time."""
    rows = torch.from_numpy(found.keys)
    counts = [len(rows) if rank == world.rank else 0 for rank in range(world.size)]
    return GroupPlan(
        blocks=blocks,
        inverse=torch.from_numpy(found.inverse),
        merge=found.segments,
        hops=[Hop(sent=counts, own=rows, received=counts, asked=torch.empty(0, dtype=torch.int64))],
        rows=rows,
        placement="alone",
    )


def _plan_with_others(
    plans: list[GroupPlan],
    groups: Sequence[TableGroup],
    found: list[Distinct],
    problem: Exception | None,
    stop: bool,
    route: Route,
    exchange: Exchange,
) -> bool:
    """Completes the plans of several ranks in place; whether any of them asks to stop."""
    sharded = [n for n, group in enumerate(groups) if not group.replicated]
    replicated = [n for n, group in enumerate(groups) if group.replicated]
    touched = [np.zeros(groups[n].end, dtype=bool) for n in replicated]
    for n, mask in zip(replicated, touched, strict=True):
        mask[found[n].keys] = True
    # What all hear of all: 1 for a problem plus 2 for asking to stop, then a bit per row of replicated groups.
    bits = np.concatenate([*touched, np.zeros(-sum(map(len, touched)) % 64, dtype=bool)])
    shared = np.concatenate([[(problem is not None) + 2 * stop], np.packbits(bits).view(np.int64)])
    keys = [found[n].keys for n in sharded]
    hops: list[list[Hop]] = [[] for _ in sharded]
    for level in route.levels:
        last = level is route.levels[-1]
        spans = [groups[n].stride * level.holders for n in sharded]
        firsts = np.arange(len(level.peers) + 1)  # times the span: the first key of each peer
        sent = [np.zeros(exchange.world.size, np.int64) for _ in sharded]
        places = []  # the keys, counted from the first one of the peer
        dtype = np.int32 if all(span <= 1 << 31 for span in spans) else np.int64
        for count, k, span in zip(sent, keys, spans, strict=True):
            of_peers = np.diff(np.searchsorted(k, firsts * span))
            count[level.peers] = of_peers
            places.append(torch.from_numpy((k - np.repeat(firsts[:-1] * span, of_peers)).astype(dtype)))
        received, shared = _exchange_counts(sent, shared, level, exchange)
        if last and shared[0] & 1:  # only now all have heard of it
            _raise_everywhere(problem, exchange)
        for number, (own, others) in enumerate(_exchange_ids(places, sent, received, exchange)):
            merged = distinct(torch.cat([others, own]).long().numpy(), spans[number])
            keys[number] = merged.keys
            if last:
                others, own = others.long(), own.long()
            else:
                others, own = torch.from_numpy(merged.inverse).split([len(others), len(own)])
            hops[number].append(
                Hop(
                    sent=sent[number].tolist(),
                    own=own,
                    received=received[number].tolist(),
                    asked=others,
                    merge=merged.segments,
                )
            )
    union = np.unpackbits(shared[1:].view(np.uint8))
    for n, of_group in zip(replicated, np.split(union, np.cumsum([len(mask) for mask in touched])), strict=False):
        rows = np.flatnonzero(of_group)
        in_union = torch.from_numpy(np.searchsorted(rows, found[n].keys))
        plans[n] = replace(plans[n], placement="replicated", rows=torch.from_numpy(rows), in_union=in_union)
    for n, of_levels, k in zip(sharded, hops, keys, strict=True):
        plans[n] = replace(plans[n], placement="sharded", hops=of_levels, rows=torch.from_numpy(k))
    return bool(shared[0])


def _exchange_ids(
    places: list[Tensor], sent: list[np.ndarray], received: list[np.ndarray], exchange: Exchange
) -> list[tuple[Tensor, Tensor]]:
    """Of each group what this rank asks itself for, and what the others ask it for, rank after rank."""
    rank = exchange.world.rank
    wanted = [part.split(count.tolist()) for part, count in zip(places, sent, strict=True)]
    asked = [
        torch.empty(count.sum() - count[rank], dtype=part.dtype) for part, count in zip(places, received, strict=True)
    ]
    receive = [part.split(without(count.tolist(), rank)) for part, count in zip(asked, received, strict=True)]
    with exchange.receiving("ids", receive) as send:
        send(wanted)
    return [(of_ranks[rank], others) for of_ranks, others in zip(wanted, asked, strict=True)]


def without(counts: list[int], rank: int) -> list[int]:
    """Counts by rank with none for `rank`."""
    return [0 if number == rank else count for number, count in enumerate(counts)]


def _requests(group: TableGroup, plan: GroupPlan) -> dict[str, int]:
    """How many of the wanted rows of this rank's tensor belong to each table."""
    hop = plan.hops[-1]
    if len(group.members) == 1:
        return dict.fromkeys(group.members, sum(hop.received))
    wanted = torch.cat([hop.asked, hop.own]).numpy()
    ends = np.array([member.offset + member.block for member in group.members.values()])
    table = np.searchsorted(ends, wanted, side="right")
    return dict(zip(group.members, np.bincount(table, minlength=len(ends)).tolist(), strict=True))


def _group_of(groups: Sequence[TableGroup], name: str) -> int:
    for number, group in enumerate(groups):
        if name in group.members:
            return number
    known = ", ".join(name for group in groups for name in group.members)
    raise KeyError(f"no table {name}; there are {known}")


def _checked_keys(group: TableGroup, name: str, ids: Tensor, route: Route) -> np.ndarray:
    if ids.dtype != torch.int64:
        raise TypeError(f"table {name}: ids must be int64, not {str(ids.dtype).removeprefix('torch.')}")
    flat = ids.detach().cpu().numpy().reshape(-1)
    if not len(flat):
        return flat
    low, high, rows = flat.min(), flat.max(), group.members[name].spec.rows
    if low < NO_ROW or high >= rows:
        raise IndexError(f"table {name}: id {low if low < NO_ROW else high} is outside its {rows} rows")
    if low == NO_ROW:
        return np.where(flat == NO_ROW, group.end, route.keys(group, name, np.maximum(flat, 0)))
    return route.keys(group, name, flat)


def _exchange_counts(
    sent: list[np.ndarray], shared: np.ndarray, level: Level, exchange: Exchange
) -> tuple[list[np.ndarray], np.ndarray]:
    """Sends each peer what is `shared` and how many rows of each group are wanted of it.

    `sent` [sharded groups][W] counts them. Returns the counts received, alike, and the union of all that is shared.
    """
    message = np.empty((exchange.world.size, len(shared) + len(sent)), np.int64)
    message[:, : len(shared)] = shared
    for column, count in enumerate(sent, len(shared)):
        message[:, column] = count
    answer = np.zeros_like(message)
    answer[exchange.world.rank] = message[exchange.world.rank]
    receive, parts = (
        [[row if rank in level.peers else row[:0] for rank, row in enumerate(torch.from_numpy(rows))]]
        for rows in (answer, message)
    )
    with exchange.receiving("counts", receive) as send:
        send(parts)
    return list(answer[:, len(shared) :].T), np.bitwise_or.reduce(answer[:, : len(shared)], axis=0)


def _raise_everywhere(problem: Exception | None, exchange: Exchange) -> NoReturn:
    told = b""
    if problem is not None:
        told = json.dumps([type(problem).__name__, str(problem.args[0] if problem.args else problem)]).encode()
    texts = _told_by_all(told, exchange)
    rank, text = next((rank, text) for rank, text in enumerate(texts) if text)
    kind, text = json.loads(text)
    raise PROBLEMS.get(kind, RuntimeError)(f"rank {rank}: {text}") from problem


def _told_by_all(told: bytes, exchange: Exchange) -> list[bytes]:
    """By rank. From rank to rank, as others may have collectives under way over the same connections."""
    ranks, mine = exchange.world.size, exchange.world.rank
    lengths = torch.full((ranks,), len(told))
    with exchange.receiving("counts", [list(lengths.split(1))]) as send:
        send([[lengths[mine : mine + 1].clone()] * ranks])
    texts = [torch.zeros(length, dtype=torch.uint8) for length in lengths.tolist()]
    with exchange.receiving("counts", [texts]) as send:
        send([[torch.tensor(list(told), dtype=torch.uint8)] * ranks])
    return [told if rank == mine else bytes(text.tolist()) for rank, text in enumerate(texts)]
