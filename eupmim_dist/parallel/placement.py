"""Where a row lives: its position in the stored order of its table, its rank, and the tensor that holds it.

W ranks. A sharded table is cut into W contiguous blocks of stored positions (DTensor's Shard(0)); a small one is
held whole by every rank. Tables of one width and placement share a tensor, so that a step treats them as one table.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.counter import random_normal, stream_key
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.parallel.memory import table_zeros
from eupmim_dist.parallel.world import World

COLUMN_BITS = 10
NUM_COLUMNS = 1 << COLUMN_BITS
FEATURE_MARK = ":"
INIT_ELEMENTS = 1 << 20
"""Elements initialised at a time, so that creating a shard needs little more memory than the shard."""


class RowOrder:
    """A fixed bijection between a table's row ids and their stored positions, the same at any number of ranks.

    Ids are dealt into NUM_COLUMNS columns (id mod NUM_COLUMNS), which are stored one after another in bit-reversed
    order. Neighbours, often alike in popularity, so visit the ranks evenly in turn (van der Corput's sequence),
    and a column remains a strided slice of the ids, which lets tools read and write whole runs of rows.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        columns = np.arange(NUM_COLUMNS)
        self._column = np.zeros_like(columns)  # by place
        for bit in range(COLUMN_BITS):
            self._column |= (columns >> bit & 1) << (COLUMN_BITS - 1 - bit)
        sizes = np.maximum(rows - self._column + NUM_COLUMNS - 1, 0) // NUM_COLUMNS
        self._end = sizes.cumsum()  # by place
        self._start = self._end - sizes
        self._start_of_column = np.empty_like(self._start)
        self._start_of_column[self._column] = self._start

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Stored positions of int64 row ids in [0, rows)."""
        found = self._start_of_column.take(ids & (NUM_COLUMNS - 1))
        found += ids >> COLUMN_BITS
        return found

    def ids(self, positions: np.ndarray) -> np.ndarray:
        """Row ids at stored positions in [0, rows)."""
        place = np.searchsorted(self._end, positions, side="right")
        return ((positions - self._start[place]) << COLUMN_BITS) + self._column[place]


@dataclass(frozen=True)
class Shard:
    """The stored positions start..start+len(weight)-1 of a table, which this rank holds."""

    spec: TableSpec
    order: RowOrder
    start: int
    weight: Tensor  # [rows held by this rank, dim], a view of its group's
    replicated: bool  # held whole by every rank

    def ids(self) -> Tensor:
        """Row ids of `weight`, int64 on the CPU."""
        return torch.from_numpy(self.order.ids(np.arange(self.start, self.start + len(self.weight))))

    def start_as(self, rows: np.ndarray) -> None:
        """Sets rows to those of float32 [rows of the table, dim]; to zeros only where rows are not trained."""
        for first in range(0, len(self.weight), INIT_ELEMENTS // self.spec.dim + 1):
            part = self.weight[first : first + INIT_ELEMENTS // self.spec.dim + 1]
            ids = self.order.ids(np.arange(self.start + first, self.start + first + len(part)))
            given = torch.from_numpy(rows[ids]).to(part.device)
            known = (given != 0).any(1, keepdim=True)
            part.copy_(torch.where(known, given, part) if self.spec.trained else given)


@dataclass(frozen=True)
class Member:
    """A table in a group: rows offset..offset+block-1 of the group's tensor on each rank that holds some."""

    spec: TableSpec
    order: RowOrder
    block: int  # rows of a full block, as every rank but the last ones has
    offset: int


@dataclass(frozen=True)
class TableGroup:
    """Tables of one width and placement in one tensor. A `key` counts its rows through the holding ranks."""

    dim: int
    replicated: bool
    members: dict[str, Member]
    num_holders: int  # ranks that a row may be on: W, or 1 (this one) if replicated
    weight: Tensor  # [stride, dim]; in host memory if so configured

    @property
    def trained(self) -> bool:
        """Whether its rows are ever moved."""
        return all(member.spec.trained for member in self.members.values())

    @property
    def stride(self) -> int:
        """Rows per rank; the keys of rank r's rows are r * stride and on."""
        return sum(member.block for member in self.members.values())

    @property
    def end(self) -> int:
        """The key past all rows, which stands for no row."""
        return self.num_holders * self.stride

    def keys(self, name: str, ids: np.ndarray) -> np.ndarray:
        member = self.members[name]
        keys = member.order.positions(ids)
        if self.stride != member.block:  # other members lie between the blocks of this one
            keys += keys // member.block * (self.stride - member.block)
        keys += member.offset
        return keys

    def gather(self, wanted: Tensor, into: Tensor) -> None:
        """Copies the wanted rows of this rank's tensor; from the host's memory to the device if it lies there."""
        if self.weight.device == into.device:
            torch.index_select(self.weight, 0, wanted.to(into.device, non_blocking=True), out=into)
            return
        pinned = torch.empty(into.shape, pin_memory=True)
        torch.index_select(self.weight, 0, wanted, out=pinned)
        into.copy_(pinned, non_blocking=True)

    def shard(self, name: str, world: World) -> Shard:
        member = self.members[name]
        start, stop = 0, member.spec.rows
        if not self.replicated:
            start, stop = block_range(member.spec.rows, world.rank, world.size)
        weight = self.weight[member.offset : member.offset + stop - start]
        return Shard(member.spec, member.order, start, weight, self.replicated)


def owner_of(name: str) -> str | None:
    """Of a table OWNER:NAME of features (features.py), the table whose rows have them; None of any other."""
    owner, mark, _ = name.partition(FEATURE_MARK)
    return owner if mark else None


def is_replicated(name: str, rows: int, num_ranks: int, config: TablesConfig) -> bool:
    """Whether each of several ranks holds all of a table, and not a shard of it."""
    return num_ranks > 1 and (rows < config.replicate_below or owner_of(name) is not None)


def by_kind(
    specs: Sequence[TableSpec], config: TablesConfig, num_ranks: int, alone: Collection[str] = ()
) -> dict[tuple[int, bool, str], list[TableSpec]]:
    """Which tables share a tensor: those of one width and placement.

    A table in `alone`, or that is not trained, shares its tensor with no other; those of one table's features share one
    among them.
    """
    kinds: dict[tuple[int, bool, str], list[TableSpec]] = {}
    for spec in specs:
        replicated = is_replicated(spec.name, spec.rows, num_ranks, config)
        owner = owner_of(spec.name)
        apart = spec.name if spec.name in alone or not spec.trained else "" if owner is None else owner + FEATURE_MARK
        kinds.setdefault((spec.dim, replicated, apart), []).append(spec)
    return kinds


def build_groups(
    specs: Sequence[TableSpec], config: TablesConfig, seed: int, world: World, alone: Collection[str] = ()
) -> list[TableGroup]:
    """Places tables and creates this rank's rows with their initial values; no rank ever holds more."""
    groups = []
    for (dim, replicated, _), members_of_kind in by_kind(specs, config, world.size, alone).items():
        num_holders = 1 if replicated else world.size
        members: dict[str, Member] = {}
        offset = 0
        for spec in members_of_kind:
            block = -(-spec.rows // num_holders)
            members[spec.name] = Member(spec, RowOrder(spec.rows), block, offset)
            offset += block
        on_host = config.memory == "host" and world.device.type == "cuda"
        device = torch.device("cpu") if on_host else world.device
        weight = table_zeros(offset, dim, device=device)
        group = TableGroup(dim, replicated, members, num_holders, weight)
        for name in members:
            _initialise(group.shard(name, world), seed)
        groups.append(group)
    return groups


def _initialise(shard: Shard, seed: int) -> None:
    """Normal rows, each a function of (seed, table, row id) alone."""
    key = stream_key(seed, "table", shard.spec.name)
    rows_at_a_time = max(1, INIT_ELEMENTS // shard.spec.dim)
    for first in range(0, len(shard.weight), rows_at_a_time):
        part = shard.weight[first : first + rows_at_a_time]
        ids = shard.order.ids(np.arange(shard.start + first, shard.start + first + len(part)))
        values = random_normal(key, torch.from_numpy(ids).to(part.device), shard.spec.dim)
        torch.mul(values, shard.spec.init_std, out=part)
