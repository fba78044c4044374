"""Row-sharded tables: each rank owns a contiguous block of rows; a step moves only the distinct rows it needs.

W ranks, T tables. One exchange of counts, one of ids and one of rows serve all tables and all their uses; the
backward sends one gradient per distinct row back. Every rank takes part in each, with nothing if need be.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from eupmim_dist.data.blocks import block_range
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.parallel.tables import (
    RowGradients,
    Shard,
    check_range,
    create_shard,
    distinct,
    merge,
    spread,
)
from eupmim_dist.parallel.world import World

BAD_IDS = -1
"""Sent instead of a count by a rank with ids outside a table, so that all ranks raise and none waits."""


class ShardedTables:
    """Tables cut into ceil blocks of rows over the ranks, created as shards."""

    def __init__(self, specs: Sequence[TableSpec], seed: int, world: World) -> None:
        self.world = world
        self.shards = {
            spec.name: create_shard(spec, *block_range(spec.rows, world.rank, world.size), seed, world.device)
            for spec in specs
        }

    def lookup(self, ids: dict[str, Tensor]) -> "ShardedLookup":
        return ShardedLookup(self.shards, ids, self.world)


class ShardedLookup:
    def __init__(self, shards: dict[str, Shard], ids: dict[str, Tensor], world: World) -> None:
        self.world = world
        self._shards = [shards[name] for name in ids]
        self._dims = [shard.spec.dim for shard in self._shards]
        plans = [distinct(table_ids) for table_ids in ids.values()]
        self._inverses = [inverse for _, inverse in plans]
        unique = [ascending for ascending, _ in plans]

        self._sent, self._received = self._exchange_counts(unique)
        wanted = _exchange(_by_rank(unique, self._sent), self._sent, self._received, [1] * len(unique))
        # Positions in the shards of the rows that each rank wants, per table, rank after rank.
        self._wanted = [
            torch.cat(parts) - shard.start
            for parts, shard in zip(_by_table(wanted, self._received, [1] * len(unique)), self._shards, strict=True)
        ]
        answers = [shard.weight[rows] for shard, rows in zip(self._shards, self._wanted, strict=True)]
        flat = _exchange(_by_rank(answers, self._received), self._received, self._sent, self._dims)
        # A table's ids ascend and its owners hold ascending blocks: rank after rank is the order of `unique`.
        self.rows = {
            name: spread(torch.cat(parts).view(-1, dim), inverse, ids[name].shape)
            for name, parts, inverse, dim in zip(
                ids, _by_table(flat, self._sent, self._dims), self._inverses, self._dims, strict=True
            )
        }

    def gradients(self, scale: float) -> dict[str, RowGradients]:
        summed = [
            merge(rows.grad, inverse, sum(counts), dim, shard.weight)
            for rows, inverse, counts, dim, shard in zip(
                self.rows.values(),
                self._inverses,
                zip(*self._sent, strict=True),
                self._dims,
                self._shards,
                strict=True,
            )
        ]
        flat = _exchange(_by_rank(summed, self._sent), self._sent, self._received, self._dims)
        gradients = {}
        for shard, rows, parts, dim in zip(
            self._shards, self._wanted, _by_table(flat, self._received, self._dims), self._dims, strict=True
        ):
            owned, inverse = torch.unique(rows, return_inverse=True)
            values = merge(torch.cat(parts), inverse, len(owned), dim, shard.weight)
            gradients[shard.spec.name] = RowGradients(owned, values * scale)
        return gradients

    def _exchange_counts(self, unique: list[Tensor]) -> tuple[list[list[int]], list[list[int]]]:
        """How many rows of each table this rank wants of each rank, and each rank wants of this: [W][T] both."""
        size, device = self.world.size, self.world.device
        counts = torch.empty(size, len(unique), dtype=torch.int64, device=device)
        problem: IndexError | None = None
        for table, (shard, ids) in enumerate(zip(self._shards, unique, strict=True)):
            starts = [block_range(shard.spec.rows, rank, size)[0] for rank in range(size)]
            edges = torch.searchsorted(ids, torch.tensor([*starts, shard.spec.rows], device=device))
            counts[:, table] = edges.diff()
            try:
                check_range(shard.spec, ids)
            except IndexError as error:
                problem = error
        if problem is not None:
            counts.fill_(BAD_IDS)
        received = torch.empty_like(counts)
        dist.all_to_all_single(received, counts)
        sent_counts, received_counts = torch.stack([counts, received]).tolist()  # the host waits for the sizes
        if problem is not None:
            raise problem
        bad = [rank for rank, row in enumerate(received_counts) if BAD_IDS in row]
        if bad:
            raise IndexError(f"rank {bad[0]} asked for an id outside its table; its own error names it")
        return sent_counts, received_counts


def _by_rank(per_table: list[Tensor], counts: list[list[int]]) -> Tensor:
    """[rows of rank 0, 1, ...] of each table -> one flat tensor, rank by rank and table by table within."""
    pieces = [tensor.split(list(column)) for tensor, column in zip(per_table, zip(*counts, strict=True), strict=True)]
    return torch.cat([pieces[table][rank].reshape(-1) for rank in range(len(counts)) for table in range(len(pieces))])


def _by_table(flat: Tensor, counts: list[list[int]], dims: list[int]) -> list[list[Tensor]]:
    """The reverse: for each table its flat pieces, rank by rank."""
    sizes = [count * dim for row in counts for count, dim in zip(row, dims, strict=True)]
    pieces = flat.split(sizes)
    return [list(pieces[table :: len(dims)]) for table in range(len(dims))]


def _exchange(send: Tensor, sent: list[list[int]], received: list[list[int]], dims: list[int]) -> Tensor:
    """all_to_all of a flat tensor; `sent` and `received` count rows [W][T], `dims` is the width of a row."""
    send_sizes, receive_sizes = (
        [sum(count * dim for count, dim in zip(row, dims, strict=True)) for row in counts]
        for counts in (sent, received)
    )
    out = send.new_empty(sum(receive_sizes))
    dist.all_to_all_single(out, send, receive_sizes, send_sizes)
    return out
