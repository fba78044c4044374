"""What a step will exchange: which distinct rows this rank wants of which rank, and which ones are wanted of it.

Plans are made on the CPU, over gloo, also on machines with GPUs: they need the sampled ids and nothing a step
computes, so they can be made ahead (prefetch.py), and the step itself never waits for a size.

n uses of rows on this rank, u distinct ones among them, m rows that the ranks want of this one, W ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.models.interface import Uses
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.exchange import Exchange
from eupmim_dist.parallel.placement import TableGroup
from eupmim_dist.parallel.world import World

Placement = Literal["alone", "sharded", "replicated"]
"""Where a group's rows are: on the only rank, each on one of several, or all of them on every one."""
PROBLEMS = {error.__name__: error for error in (IndexError, KeyError, TypeError)}


@dataclass(frozen=True)
class Segments:
    """Which entries of a list belong to the same row: `order[starts[i]:starts[i+1]]` are those of row i."""

    order: Tensor  # int32, entries sorted by row; those without a row left out
    starts: Tensor  # int32 [rows]

    def pinned(self) -> "Segments":
        return Segments(self.order.pin_memory(), self.starts.pin_memory())

    def to(self, device: torch.device) -> "Segments":
        return Segments(self.order.to(device, non_blocking=True), self.starts.to(device, non_blocking=True))


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
class GroupPlan:
    """One group's part of a plan. A list `by rank` counts its entries for each of the W ranks, in their order."""

    blocks: list[UseBlock]  # in the order of `inverse`
    inverse: Tensor  # int32 [n], the distinct row of each use; u where it has none
    merge: Segments  # uses -> distinct rows, which are ordered by the rank that holds them
    sent: list[int]  # by rank: how many of the distinct rows each holds; their sum is u
    own: Tensor  # int64, rows of this rank's tensor that it wants itself
    received: list[int]  # by rank: how many rows each wants of this one, itself included
    asked: Tensor  # int64, rows of this rank's tensor that the others want, rank after rank
    rows: Tensor  # int64 ascending, the distinct ones among asked and own: what this rank will update
    placement: Placement
    owner_merge: Segments | None = None  # sharded only: gradients of asked, then own -> `rows`
    in_union: Tensor | None = None  # replicated only: int64 [u], where this rank's distinct rows stand in `rows`

    def pinned(self) -> "GroupPlan":
        """Every tensor in page-locked memory, from where a GPU can fetch it while the host goes on."""
        changed: dict[str, Any] = {
            field.name: value.pinned() if isinstance(value, Segments) else value.pin_memory()
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | Segments)
        }
        return replace(self, **changed)


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


@dataclass(frozen=True)
class Distinct:
    keys: np.ndarray  # int64 [u], ascending
    inverse: np.ndarray  # int32 [n]
    order: np.ndarray  # int32, `Segments.order`
    starts: np.ndarray  # int32 [u]

    @property
    def segments(self) -> Segments:
        return Segments(torch.from_numpy(self.order), torch.from_numpy(self.starts))


def distinct(keys: np.ndarray, end: int) -> Distinct:
    """Sorts int64 keys in [0, end]; `end` itself stands for no row.

    Key and position are sorted as one number, which numpy does several times faster than an indirect sort.
    """
    bits = max(1, len(keys).bit_length())
    if end.bit_length() + bits > 63:
        raise OverflowError(f"{len(keys)} ids of {end} rows in one step are too many to be sorted")
    packed = keys << bits
    packed |= np.arange(len(keys))
    packed.sort()
    order = packed & ((1 << bits) - 1)
    packed >>= bits  # the keys, ascending
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(packed[1:], packed[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    found = packed[starts]
    inverse = np.empty(len(keys), dtype=np.int32)
    inverse[order] = first.cumsum(dtype=np.int32) - 1
    order, starts = order.astype(np.int32), starts.astype(np.int32)
    if len(found) and found[-1] == end:
        order, starts, found = order[: starts[-1]], starts[:-1], found[:-1]
    return Distinct(found, inverse, order, starts)


def make_plan(
    groups: Sequence[TableGroup], micro_batches: Sequence[Uses], exchange: Exchange, stop: bool = False
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
                    _checked_keys(groups[place], table, ids).reshape(samples, prod(ids.shape[1:]))
                    for ids in together.values()
                ]
                keys[place].append((columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)).reshape(-1))
                blocks[place].append(UseBlock(number, samples, {name: ids.shape for name, ids in together.items()}))
    except Exception as error:  # whatever it is, the other ranks must hear of it
        problem = error
    found = [
        distinct(np.concatenate(k) if len(k) > 2 else k[-1], group.end) for group, k in zip(groups, keys, strict=True)
    ]
    plans = [_local_plan(*of_group, exchange.world) for of_group in zip(blocks, found, strict=True)]
    if exchange.world.size > 1:
        stop = _plan_with_others(plans, groups, found, problem, stop, exchange)
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
        sent=counts,
        own=rows,
        received=counts,
        asked=torch.empty(0, dtype=torch.int64),
        rows=rows,
        placement="alone",
    )


def _plan_with_others(
    plans: list[GroupPlan],
    groups: Sequence[TableGroup],
    found: list[Distinct],
    problem: Exception | None,
    stop: bool,
    exchange: Exchange,
) -> bool:
    """Completes the plans of several ranks in place; whether any of them asks to stop."""
    world = exchange.world
    sharded = [n for n, group in enumerate(groups) if not group.replicated]
    replicated = [n for n, group in enumerate(groups) if group.replicated]
    firsts = np.arange(world.size + 1)  # times the stride: the first key of each rank
    sent = [np.diff(np.searchsorted(found[n].keys, firsts * groups[n].stride)) for n in sharded]
    touched = [np.zeros(groups[n].end, dtype=bool) for n in replicated]
    for n, mask in zip(replicated, touched, strict=True):
        mask[found[n].keys] = True
    received, unions, stopping = _exchange_counts(sent, touched, problem, stop, exchange)

    for n, union in zip(replicated, unions, strict=True):
        rows = np.flatnonzero(union)
        in_union = torch.from_numpy(np.searchsorted(rows, found[n].keys))
        plans[n] = replace(plans[n], placement="replicated", rows=torch.from_numpy(rows), in_union=in_union)

    # Positions in the tensors of the ranks that hold the rows.
    dtype = np.int32 if all(groups[n].stride <= 1 << 31 for n in sharded) else np.int64
    positions = [
        torch.from_numpy((found[n].keys - np.repeat(firsts[:-1] * groups[n].stride, count)).astype(dtype))
        for n, count in zip(sharded, sent, strict=True)
    ]
    wanted = [part.split(count.tolist()) for part, count in zip(positions, sent, strict=True)]
    asked = [torch.from_numpy(np.empty(count.sum() - count[world.rank], dtype)) for count in received]
    receive = [part.split(without(count.tolist(), world.rank)) for part, count in zip(asked, received, strict=True)]
    with exchange.receiving("ids", receive) as send:
        send(wanted)
    for n, *counts, of_ranks, others in zip(sharded, sent, received, wanted, asked, strict=True):
        own, others = of_ranks[world.rank].long(), others.long()
        owner = distinct(torch.cat([others, own]).numpy(), groups[n].stride)
        plans[n] = replace(
            plans[n],
            placement="sharded",
            sent=counts[0].tolist(),
            own=own,
            received=counts[1].tolist(),
            asked=others,
            rows=torch.from_numpy(owner.keys),
            owner_merge=owner.segments,
        )
    return stopping


def without(counts: list[int], rank: int) -> list[int]:
    """Counts by rank with none for `rank`."""
    return [0 if number == rank else count for number, count in enumerate(counts)]


def _requests(group: TableGroup, plan: GroupPlan) -> dict[str, int]:
    """How many of the wanted rows of this rank's tensor belong to each table."""
    if len(group.members) == 1:
        return dict.fromkeys(group.members, sum(plan.received))
    wanted = torch.cat([plan.asked, plan.own]).numpy()
    ends = np.array([member.offset + member.block for member in group.members.values()])
    table = np.searchsorted(ends, wanted, side="right")
    return dict(zip(group.members, np.bincount(table, minlength=len(ends)).tolist(), strict=True))


def _group_of(groups: Sequence[TableGroup], name: str) -> int:
    for number, group in enumerate(groups):
        if name in group.members:
            return number
    known = ", ".join(name for group in groups for name in group.members)
    raise KeyError(f"no table {name}; there are {known}")


def _checked_keys(group: TableGroup, name: str, ids: Tensor) -> np.ndarray:
    if ids.dtype != torch.int64:
        raise TypeError(f"table {name}: ids must be int64, not {str(ids.dtype).removeprefix('torch.')}")
    flat = ids.detach().cpu().numpy().reshape(-1)
    if not len(flat):
        return flat
    low, high, rows = flat.min(), flat.max(), group.members[name].spec.rows
    if low < NO_ROW or high >= rows:
        raise IndexError(f"table {name}: id {low if low < NO_ROW else high} is outside its {rows} rows")
    if low == NO_ROW:
        return np.where(flat == NO_ROW, group.end, group.keys(name, np.maximum(flat, 0)))
    return group.keys(name, flat)


def _exchange_counts(
    sent: list[np.ndarray],
    touched: list[np.ndarray],
    problem: Exception | None,
    stop: bool,
    exchange: Exchange,
) -> tuple[list[np.ndarray], list[np.ndarray], bool]:
    """Sends each rank [1 for a problem here plus 2 for asking to stop, its counts, a bit per row of replicated groups].

    `sent` [sharded groups][W] counts the rows wanted of each rank, `touched` masks the rows of replicated groups.
    Returns the counts received, alike, the union of the ranks' masks, and whether any rank asks to stop.
    """
    num_counts, num_rows = len(sent), [len(mask) for mask in touched]
    bits = np.concatenate([*touched, np.zeros(-sum(num_rows) % 64, dtype=bool)])
    words = np.packbits(bits).view(np.int64)
    message = np.empty((exchange.world.size, 1 + num_counts + len(words)), np.int64)
    message[:, 0] = (problem is not None) + 2 * stop
    for column, count in enumerate(sent):
        message[:, 1 + column] = count
    message[:, 1 + num_counts :] = words
    answer = message.copy()
    with exchange.receiving("counts", [list(torch.from_numpy(answer))]) as send:
        send([list(torch.from_numpy(message))])
    if (answer[:, 0] & 1).any():
        _raise_everywhere(problem, exchange)
    union = np.unpackbits(np.bitwise_or.reduce(answer[:, 1 + num_counts :], axis=0).view(np.uint8))
    unions = np.split(union, np.cumsum(num_rows))[:-1]
    return list(answer[:, 1 : 1 + num_counts].T), unions, bool(answer[:, 0].any())


def _raise_everywhere(problem: Exception | None, exchange: Exchange) -> NoReturn:
    told = None if problem is None else (type(problem).__name__, str(problem.args[0] if problem.args else problem))
    gathered = everywhere(told, exchange.world, exchange.connections.up if exchange.connections else None)
    rank, (kind, text) = next((rank, told) for rank, told in enumerate(gathered) if told is not None)
    raise PROBLEMS.get(kind, RuntimeError)(f"rank {rank}: {text}") from problem
