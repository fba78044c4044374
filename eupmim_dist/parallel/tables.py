"""Embedding tables behind one protocol: LocalTables (one process, the oracle) and ShardedTables (sharded.py).

There are two ways to a table so far: rows by id (`lookup`, for training) and every rank's own rows at once
(`shard`, for ranking the catalogue). Neither ever assembles a sharded table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.data.counter import random_normal, stream_key
from eupmim_dist.models.interface import TableSpec

INIT_BLOCK = 1 << 16
"""Rows initialised at a time, so that creating a shard needs little more memory than the shard."""


@dataclass(frozen=True)
class Shard:
    """The rows start..start+len(weight)-1 of a table, which this rank owns."""

    spec: TableSpec
    start: int
    weight: Tensor  # [rows of this rank, dim]


@dataclass(frozen=True)
class RowGradients:
    """Gradients of the touched rows of one shard, summed over every use of a row on every rank."""

    rows: Tensor  # int64 [n], distinct positions in the shard
    values: Tensor  # [n, dim]


class Lookup(Protocol):
    """Rows of one step. After `backward` of a loss, `gradients` brings their gradients to the owners."""

    rows: dict[str, Tensor]
    """Leaves of autograd: the ids' shape plus the table's width; zeros where the id is NO_ROW."""

    def gradients(self, scale: float) -> dict[str, RowGradients]:
        """Gradients by table times `scale`. Every rank must call it; a rank may have no rows."""


class Tables(Protocol):
    shards: dict[str, Shard]

    def lookup(self, ids: dict[str, Tensor]) -> Lookup:
        """Rows for int64 ids of any shape. Raises IndexError, on every rank, for an id outside its table."""


def create_shard(spec: TableSpec, start: int, stop: int, seed: int, device: torch.device) -> Shard:
    """Xavier normal rows start..stop-1, each a function of (seed, table, row id) alone."""
    weight = torch.empty(stop - start, spec.dim, device=device)
    key = stream_key(seed, "table", spec.name)
    for first in range(start, stop, INIT_BLOCK):
        count = min(INIT_BLOCK, stop - first)
        block = random_normal(key, first, count, spec.dim, device)
        weight[first - start : first - start + count] = block.mul_(spec.init_std)
    return Shard(spec, start, weight)


def distinct(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending distinct ids (NO_ROW left out) and, for each of the flattened ids, its position among them.

    NO_ROW gets the position past the last one.
    """
    unique, inverse = torch.unique(ids.flatten(), return_inverse=True)
    if len(unique) and unique[0] == NO_ROW:  # the smallest, so the first
        unique = unique[1:]
        inverse = torch.where(inverse == 0, len(unique), inverse - 1)
    return unique, inverse


def spread(unique_rows: Tensor, inverse: Tensor, shape: torch.Size) -> Tensor:
    """Rows of the distinct ids [n, dim] -> an autograd leaf [*shape, dim], zero where the id was NO_ROW."""
    padded = torch.cat([unique_rows, unique_rows.new_zeros(1, unique_rows.shape[1])])
    return padded[inverse].view(*shape, padded.shape[1]).requires_grad_()


def merge(gradient: Tensor | None, inverse: Tensor, num_unique: int, dim: int, like: Tensor) -> Tensor:
    """The reverse of `spread`: sums the gradient of each distinct id, [num_unique, dim]."""
    total = like.new_zeros(num_unique + 1, dim)
    if gradient is not None:
        total.index_add_(0, inverse, gradient.reshape(inverse.numel(), dim))
    return total[:num_unique]


class LocalTables:
    """Whole tables as plain tensors in one process: what sharded tables are compared with."""

    def __init__(self, specs: Sequence[TableSpec], seed: int, device: torch.device) -> None:
        self.shards = {spec.name: create_shard(spec, 0, spec.rows, seed, device) for spec in specs}

    def lookup(self, ids: dict[str, Tensor]) -> "LocalLookup":
        return LocalLookup(self.shards, ids)


class LocalLookup:
    def __init__(self, shards: dict[str, Shard], ids: dict[str, Tensor]) -> None:
        self.rows: dict[str, Tensor] = {}
        self._shards = shards
        self._plans = {name: distinct(table_ids) for name, table_ids in ids.items()}
        for name, (unique, inverse) in self._plans.items():
            check_range(shards[name].spec, unique)
            self.rows[name] = spread(shards[name].weight[unique], inverse, ids[name].shape)

    def gradients(self, scale: float) -> dict[str, RowGradients]:
        merged = {}
        for name, (unique, inverse) in self._plans.items():
            shard = self._shards[name]
            values = merge(self.rows[name].grad, inverse, len(unique), shard.spec.dim, shard.weight)
            merged[name] = RowGradients(unique, values * scale)
        return merged


def check_range(spec: TableSpec, unique: Tensor) -> None:
    """Raises IndexError if an id of the ascending `unique` is not a row of the table."""
    if len(unique) and (unique[0] < 0 or unique[-1] >= spec.rows):
        wrong = int(unique[0] if unique[0] < 0 else unique[-1])
        raise IndexError(f"table {spec.name}: id {wrong} is outside its {spec.rows} rows")
