"""What a step of a sharded table sends and takes on W ranks, from ids that are drawn and what one rank takes alone.

Bytes are counted: ids are drawn for the ranks of some nodes (of all where there are few), and each distinct one that
another rank or node holds is asked for, fetched and given its gradient.

A step takes what a rank of W takes to do its work without a link (mirror.py), with as many rows to update as fall to
it, and in addition

    exchanges * latency + messages * seconds of one + bytes within nodes / speed of a rank
    + bytes between nodes / speed of a node's link

the first two of which are measured together where there are W ranks (exchanges.py).

N nodes of M ranks, n ids a step and rank, D the table's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from eupmim_dist.bench.ids import ZIPF_EXPONENT, IdKind, random_ids
from eupmim_dist.bench.rivals import Shape
from eupmim_dist.parallel.placement import RowOrder
from eupmim_dist.parallel.route import ExchangeKind

SEED = 1
MAX_NODES = 4
"""Nodes of a larger world whose ids are drawn."""
ID_BYTES = 4
COUNT_BYTES = 16
"""That a rank sends each peer before ids: a word of flags, and how many rows of the one table it wants."""
KINDS = 4
"""Exchanges of a level: counts, ids, rows, gradients."""


@dataclass(frozen=True)
class Cluster:
    """W ranks on nodes of so many, and what joins them."""

    ranks: int
    local: int
    link: float = 1.25e9  # bytes/s that a node sends and, at once, receives
    within: float = 5e9  # bytes/s that a rank sends to others of its node
    latency: float = 50e-6  # seconds of an exchange in which nothing is sent
    message: float = 10e-6  # seconds that a rank needs to send and receive a message

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.local)


@dataclass(frozen=True)
class Sent:
    """Means of a step."""

    between: float  # bytes that a node sends to others
    within: float  # bytes that a rank sends to others of its node
    messages: float  # that a rank sends
    levels: float
    distinct: float  # rows that a rank wants
    handled: float  # rows that a rank copies for those who ask, itself included, and sums gradients of


@dataclass(frozen=True)
class Work:
    """Of a rank's step without any link."""

    seconds: float
    update: float  # seconds of that, to move `updated` rows
    updated: float


def count(
    way: ExchangeKind, shape: Shape, kind: IdKind, cluster: Cluster, steps: Sequence[int], row_bytes: int = 8
) -> Sent:
    """`row_bytes`: of a number of a row as it travels and of its gradient, together."""
    nodes = range(cluster.nodes)
    drawn = sorted({int(node) for node in np.linspace(0, cluster.nodes - 1, min(cluster.nodes, MAX_NODES))})
    if cluster.nodes <= 2 * MAX_NODES:
        drawn = list(nodes)
    found = [_count_step(way, shape, kind, cluster, step, drawn, row_bytes) for step in steps]
    return Sent(*(float(np.mean(values)) for values in zip(*(vars(each).values() for each in found), strict=True)))


def _count_step(
    way: ExchangeKind, shape: Shape, kind: IdKind, cluster: Cluster, step: int, drawn: list[int], row_bytes: int
) -> Sent:
    local = min(cluster.local, cluster.ranks)
    two = way == "two_level" and 1 < local < cluster.ranks
    of_nodes = [[distinct_keys(shape, kind, node * local + i, step) for i in range(local)] for node in drawn]
    block = -(-shape.rows // cluster.ranks)
    between = within = handled = 0
    for node, of_node in zip(drawn, of_nodes, strict=True):
        union = np.unique(np.concatenate(of_node)) if two else np.empty(0, np.int64)
        handled += sum(map(len, of_node)) + len(union)
        for number, keys in enumerate(of_node):
            holders = keys // block
            asked = node * local + holders % local if two else holders  # agents, which are on this node
            near = asked // local == node
            within += int((near & (asked != node * local + number)).sum())
            between += int((~near).sum())
        between += int((union // block // local != node).sum())
    ranks, row = local * len(drawn), shape.dim * row_bytes + ID_BYTES
    far_peers = 0 if cluster.nodes == 1 else cluster.nodes - 1 if two else cluster.ranks - local
    return Sent(
        between=between / len(drawn) * row + local * far_peers * COUNT_BYTES,
        within=within / ranks * row + (local - 1) * COUNT_BYTES,
        messages=KINDS * (far_peers + local - 1),
        levels=2 if two else 1 if cluster.ranks > 1 else 0,
        distinct=sum(len(keys) for of_node in of_nodes for keys in of_node) / ranks,
        handled=handled / ranks if cluster.ranks > 1 else 0,
    )


@lru_cache(256)
def distinct_keys(shape: Shape, kind: IdKind, rank: int, step: int) -> np.ndarray:
    """Stored positions of the distinct rows that a rank wants in a step, ascending."""
    ids = random_ids(kind, shape.rows, shape.num_samples, shape.ids_per_sample, SEED, rank, step).numpy()
    return np.unique(RowOrder(shape.rows).positions(ids.reshape(-1)))


def touched(shape: Shape, kind: IdKind, num_ids: int) -> float:
    """How many distinct rows so many ids have, as is to be expected."""
    if kind == "uniform":
        return shape.rows * -np.expm1(num_ids * np.log1p(-1 / shape.rows))
    share = np.arange(1, shape.rows + 1, dtype=float) ** -ZIPF_EXPONENT
    share /= share.sum()
    return float(-np.expm1(num_ids * np.log1p(-share)).sum())


def step_seconds(sent: Sent, work: Work, shape: Shape, kind: IdKind, cluster: Cluster) -> float:
    """Of a step whose exchanges no other work hides."""
    updated = touched(shape, kind, cluster.ranks * shape.num_ids) / cluster.ranks
    exchanges = KINDS * sent.levels * cluster.latency + sent.messages * cluster.message
    links = sent.within / cluster.within + sent.between / cluster.link
    return work.seconds + work.update * (updated / work.updated - 1) + exchanges + links
