"""Rows that nearly every node asks for, held by all ranks: nothing of them is asked for, and gradients are summed.

Which ones is found out from what ranks ask for in the first steps of a training, and so a function of the seed and the
number of ranks, also where it is gone on with. W ranks, M on each node, H rows.

A row that all nodes ask for costs a node's link as much as by two_level, and less than by flat, where every rank asks
for it; one that all ranks have is neither planned nor waited for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.models.interface import Uses
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.memory import table_zeros
from eupmim_dist.parallel.placement import Head, TableGroup
from eupmim_dist.parallel.route import Route
from eupmim_dist.parallel.world import World

STEPS = 16
"""Of which requests are counted."""
NODES = 0.9
"""How many of the nodes ask for a row of the head in a step, as a mean."""

HeadIds = Mapping[str, np.ndarray]
"""Row ids of the head, ascending, by table."""


def has_head(world: World) -> bool:
    """Whether one can spare anything: among several nodes of several ranks."""
    return 1 < world.local_size < world.size


def least_share(local_size: int) -> float:
    """How many of the ranks ask for a row of the head in a step at the least, where a node has so many."""
    return 1.0 - (1 - NODES) ** (1 / local_size)


def head_of(steps: Iterable[Sequence[Uses]], world: World) -> dict[str, np.ndarray]:
    """The head of each table, of what this rank asks for in some steps, by micro-batch; collective.

    A row that a share p of the ranks asks for is asked for by 1 - (1 - p)^M of the nodes.
    """
    asked: dict[str, list[np.ndarray]] = {}  # by table: the distinct ids of each step, one after another
    num_steps = 0
    for micro_batches in steps:
        num_steps += 1
        of_step: dict[str, list[np.ndarray]] = {}
        for uses in micro_batches:
            for table, ids in uses.values():
                of_step.setdefault(table, []).append(ids.numpy().reshape(-1))
        for table, parts in of_step.items():
            asked.setdefault(table, []).append(np.setdiff1d(np.concatenate(parts), NO_ROW))
    least = least_share(world.local_size) * num_steps  # steps in which a rank asks for a row
    mine = {}
    for table, parts in asked.items():
        rows, times = np.unique(np.concatenate(parts), return_counts=True)
        often = times > least / 2  # ranks draw alike: no other is likely to be of the head
        mine[table] = rows[often], times[often]
    ranks = everywhere(mine, world)
    found = {}
    for table in asked:
        every, times = (np.concatenate(values) for values in zip(*(of[table] for of in ranks), strict=True))
        rows, place = np.unique(every, return_inverse=True)
        found[table] = rows[np.bincount(place, times, len(rows)) > least * world.size]
    return found


def with_heads(groups: Sequence[TableGroup], ids: HeadIds, route: Route, world: World) -> list[TableGroup]:
    """The groups with the heads of sharded tables, whose copies are further groups, at the end: zeros until `share`."""
    found = list(groups)
    for number, group in enumerate(groups):
        of_tables = [route.keys(group, table, ids[table]) for table in group.members if table in ids]
        keys = np.sort(np.concatenate([np.empty(0, np.int64), *of_tables]))
        if not len(keys):
            continue
        place, row = np.divmod(keys, group.stride)
        mine = np.flatnonzero(place == route.order[world.rank])
        device = group.weight.device
        own, places = (torch.from_numpy(numbers).to(device) for numbers in (row[mine], mine))
        found[number] = replace(group, head=Head(len(found), keys, own, places))
        found.append(TableGroup(group.dim, True, {}, 1, table_zeros(len(keys), group.dim, device=device)))
    return found


def share(head: Head, held: torch.Tensor, copies: torch.Tensor, world: World) -> None:
    """Sets all ranks' `copies` [H, ...] to what is `held` [rows, ...] of each by one of them; collective."""
    values = torch.zeros(copies.shape, device=world.device)
    values[head.places] = held[head.own].to(world.device)
    dist.all_reduce(values)  # of each row one rank's, and zeros
    copies.copy_(values)


def settle(head: Head, held: torch.Tensor, copies: torch.Tensor) -> None:
    """Has this rank take over into what is `held` of each row what the copies have become."""
    held.index_copy_(0, head.own, copies.index_select(0, head.places))
