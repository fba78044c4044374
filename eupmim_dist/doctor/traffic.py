"""What W ranks would send each other in a training step, counted on one: batches are drawn as the ranks would.

Ids, rows and gradients of look-ups are exact for what `parallel/exchange.py` does (a test compares them with what ranks
have sent); sums and gathers over the ranks are counted as rings make them.

W ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from eupmim_dist.config.schema import Config
from eupmim_dist.data.batch import NO_ROW, Batch
from eupmim_dist.data.blocks import block_range
from eupmim_dist.models.features import Feature
from eupmim_dist.models.interface import ITEM_TABLE, Model, TableSpec
from eupmim_dist.objectives.interface import Objective
from eupmim_dist.objectives.readout import BY_TARGET
from eupmim_dist.parallel.placement import RowOrder, by_kind
from eupmim_dist.parallel.propagation import TABLES as PROPAGATED
from eupmim_dist.tasks.interface import Task

FLOAT, WORD = 4, 8


@dataclass
class StepTraffic:
    """Of one step or the mean of some."""

    sent: dict[str, np.ndarray]
    """By kind, float64 [W, W]: bytes that a rank, the row, sends another."""
    sums: int
    """How many sums over the ranks there are, each of which has to be waited for."""
    looked_up: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Bytes that each rank holds of rows, gradients, ids and plans (docs/tables.md), [W]."""

    @property
    def total(self) -> np.ndarray:
        return np.sum(list(self.sent.values()), axis=0)

    def between_nodes(self, per_node: int) -> np.ndarray:
        """Bytes that each node sends every other one, [N, N]."""
        size = len(self.looked_up)
        nodes = np.arange(size) // per_node
        found = np.zeros((nodes[-1] + 1, nodes[-1] + 1))
        np.add.at(found, (nodes[:, None], nodes[None, :]), self.total)
        np.fill_diagonal(found, 0)
        return found


def mean_of(steps: Sequence[StepTraffic]) -> StepTraffic:
    sent = {kind: np.mean([step.sent[kind] for step in steps], axis=0) for kind in steps[0].sent}
    return StepTraffic(sent, steps[0].sums, np.mean([step.looked_up for step in steps], axis=0))


def traffic_of_step(
    config: Config,
    model: Model,
    task: Task,
    objective: Objective,
    specs: Sequence[TableSpec],
    features: Sequence[Feature],
    size: int,
    step: int,
) -> StepTraffic:
    """Of `size` ranks with the flat exchange; `task` is that of one rank, and so draws the whole global batch."""
    whole = task.sample(step)
    parts = [_part(whole, config.train.global_batch_size, rank, size) for rank in range(size)]
    uses = [_ids_by_table(model, objective, part, step) for part in parts]
    alone = {feature.table for feature in features}
    alone |= {ITEM_TABLE} if objective.whole_catalogue else set()
    alone |= set(PROPAGATED) if model.propagation() is not None else set()
    kinds = by_kind([*specs, *(feature.spec for feature in features)], config.tables, size, alone)
    counts = _Counts(config, size)
    for (dim, replicated, _), tables in kinds.items():
        for spec in tables:
            counts.add(spec, dim, replicated, [ids.get(spec.name, np.zeros(0, np.int64)) for ids in uses])
        if replicated and size > 1:
            counts.add_sum("replicated", dim * FLOAT * counts.touched)
            if objective.whole_catalogue and any(spec.name == ITEM_TABLE for spec in tables):
                counts.add_sum("replicated", dim * FLOAT * sum(spec.rows for spec in tables))
    replicated_tables = {spec.name for (_, replicated, _), tables in kinds.items() if replicated for spec in tables}
    for table in {feature.table for feature in features} - replicated_tables:
        counts.add_sum("replicated", sum(f.spec.rows * f.spec.dim * FLOAT for f in features if f.table == table))
    counts.add_counts(kinds)
    if objective.whole_catalogue:
        _add_catalogue(counts, config, model, objective, whole, parts[0].capacity)
    counts.add_sum("dense", sum(p.numel() for p in model.parameters() if p.requires_grad) * FLOAT)
    return StepTraffic(counts.sent, counts.sums, counts.looked_up)


def _part(whole: Batch, slots: int, rank: int, size: int) -> Batch:
    """What a rank samples for its slots of a global batch; of each there may be several samples."""
    first, stop = block_range(slots, rank, size)
    of_slot = len(whole) // slots
    return whole.samples(first * of_slot, stop * of_slot, capacity=-(-slots // size) * of_slot)


def _ids_by_table(model: Model, objective: Objective, part: Batch, step: int) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {}
    for table, ids in (model.uses(part) | objective.draw(part, step).uses()).values():
        found.setdefault(table, []).append(ids.numpy().reshape(-1))
    return {table: np.concatenate(lists) for table, lists in found.items()}


class _Counts:
    def __init__(self, config: Config, size: int) -> None:
        self.config, self.size, self.sums = config, size, 0
        kinds = ("counts", "ids", "rows", "gradients", "replicated", "catalogue", "dense")
        self.sent = {kind: np.zeros((size, size)) for kind in kinds}
        self.looked_up = np.zeros(size)
        self.touched = 0
        """Rows that any rank has used of the replicated tables since the last sum."""

    def add(self, spec: TableSpec, dim: int, replicated: bool, ids: Sequence[np.ndarray]) -> None:
        """The uses of one table on each rank."""
        distinct = [np.unique(some[some != NO_ROW]) for some in ids]
        number = np.array([len(some) for some in ids])
        unique = np.array([len(some) for some in distinct])
        asked = unique
        if replicated:
            self.touched += len(np.unique(np.concatenate(distinct)))
        else:
            wanted = self._wanted(spec, distinct)
            asked = wanted.sum(0)
            np.fill_diagonal(wanted, 0)
            row, gradient = (
                torch.finfo(getattr(torch, wire)).bits // 8
                for wire in (self.config.tables.row_format, self.config.tables.gradient_format)
            )
            self.sent["ids"] += wanted * FLOAT  # as int32
            self.sent["rows"] += wanted.T * dim * row
            self.sent["gradients"] += wanted * dim * gradient
        self.looked_up += FLOAT * dim * (3 * number + 2 * unique + 3 * asked) + 100 * number

    def _wanted(self, spec: TableSpec, distinct: Sequence[np.ndarray]) -> np.ndarray:
        """How many distinct rows each rank wants of each, int64 [W, W]."""
        order, block = RowOrder(spec.rows), -(-spec.rows // self.size)
        return np.stack([np.bincount(order.positions(some) // block, minlength=self.size) for some in distinct])

    def add_counts(self, kinds: dict[tuple[int, bool, str], list[TableSpec]]) -> None:
        """What the ranks first tell each other: a word of flags, how many rows, a bit for each replicated row."""
        sharded = sum(not replicated for _, replicated, _ in kinds)
        bits = sum(spec.rows for (_, replicated, _), tables in kinds.items() if replicated for spec in tables)
        self.add_to_all("counts", WORD * (1 + sharded + -(-bits // 64)))

    def add_to_all(self, kind: str, size: float) -> None:
        """Every rank sends every other one as much."""
        self.sent[kind] += size * (1 - np.eye(self.size))

    def add_ring(self, kind: str, size: float) -> None:
        """Every rank sends the next one as much."""
        ranks = np.arange(self.size)
        if self.size > 1:
            self.sent[kind][ranks, (ranks + 1) % self.size] += size

    def add_sum(self, kind: str, size: float) -> None:
        """A sum over the ranks of so many bytes; the touched rows are done with."""
        self.touched = 0
        self.add_ring(kind, 2 * size * (self.size - 1) / self.size)
        self.sums += self.size > 1


def _add_catalogue(
    counts: _Counts, config: Config, model: Model, objective: Objective, whole: Batch, capacity: int
) -> None:
    """A loss over all items: queries go to all ranks and their gradients come back, scores are summed."""
    places = whole.target.shape[1]  # type: ignore[attr-defined]
    share = config.train.accumulation * -(-capacity // config.train.accumulation) * places
    interests = 1 if getattr(objective, "readout", None) in BY_TARGET else model.num_interests
    queries, others = share * interests * model.dim * FLOAT, counts.size - 1
    ids = share * WORD * (2 if getattr(objective, "discount", 0) else 1)  # targets, and their places
    counts.add_ring("catalogue", others * (queries + ids))
    counts.add_to_all("catalogue", queries)  # the gradients of all ranks for a rank's own
    asked = int((whole.target > 0).sum())  # type: ignore[attr-defined]
    for _ in range(5):  # the score and its gradient; the largest, the total and its gradient
        counts.add_sum("catalogue", asked * FLOAT)
