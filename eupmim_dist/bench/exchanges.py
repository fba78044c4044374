"""What a step of a sharded table sends and takes on the ranks that are there, beside what is predicted of it."""

import os
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np
import psutil
import torch
from torch import Tensor

from eupmim_dist.bench.gauges import now
from eupmim_dist.bench.ids import IdKind, random_ids
from eupmim_dist.bench.mirror import Mirror, mirrored_tables
from eupmim_dist.bench.rivals import LEARNING_RATE, NAME, Shape
from eupmim_dist.bench.scaling import KINDS, SEED, Cluster, Work, count, distinct_keys, step_seconds
from eupmim_dist.bench.tables import WARM_UP, Ours
from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import make_table_optimizer
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.collectives import barrier
from eupmim_dist.parallel.exchange import Exchange, Traffic, open_connections
from eupmim_dist.parallel.route import ExchangeKind
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger

ROUNDS = 4
NOTHING, PROBED_BYTES = 4, 1 << 20
"""That a rank sends each of some others to see how long they wait for each other, and how fast it goes."""


def measure_exchanges(
    shape: Shape, kind: IdKind, config: TablesConfig, steps: int, cluster: Cluster, world: World
) -> dict[str, Any]:
    """A step of each exchange, measured and as predicted from what each rank takes without the others, at the same
    time, and from how fast these links are found to be; of flat alone, where two levels are the same. Collective, the
    same on every rank.

    Times are medians over the steps, means of the ranks', which are taken in turns with those without a link. Bytes
    are those of a node and step that go to other nodes: of what is exchanged, and all that its interface counts.
    """
    log = get_logger(world.rank)
    spec, ids = TableSpec(NAME, shape.rows, shape.dim), _ids(shape, kind, world, range(WARM_UP + steps))
    log.info(f"the links: {3 * ROUNDS} times {WARM_UP + steps} steps")
    cluster = _with_links(cluster, _ours(mirrored_tables(spec, SEED, world, config), config, shape), ids)
    found: dict[str, Any] = {}
    for way in get_args(ExchangeKind) if world.has_levels else ("flat",):
        log.info(f"{way}: {ROUNDS} times {WARM_UP + steps} steps, and twice as many without the others")
        of_way = config.model_copy(update={"exchange": way})
        ours = _ours(ShardedTables([spec], SEED, world, of_way), of_way, shape)
        alone = _ours(mirrored_tables(spec, SEED, world, of_way), of_way, shape)
        timed, met, taken, counted = [], [], [], 0
        for _ in range(ROUNDS):
            barrier(world)
            timed.append(_timed(alone, ids))
            met.append(_timed(alone, ids, [NOTHING] * world.size))
            for _ in ours.steps(ids[:WARM_UP]):
                pass
            ours.tables.traffic.clear()
            barrier(world)
            before, marks = _sent_by_interface(), [now(world.device)]
            for _ in ours.steps(ids[WARM_UP:]):
                marks.append(now(world.device))
            taken += np.diff(marks).tolist()
            barrier(world)
            counted += _sent_by_interface() - before
        between = sum(cost.between_nodes for cost in ours.tables.traffic.values())
        ranks = everywhere((np.median(taken), between, counted if world.local_rank == 0 else 0), world)
        seconds, of_ranks, of_interfaces = zip(*ranks, strict=True)
        sent = count(way, shape, kind, cluster, range(WARM_UP, WARM_UP + steps), row_bytes_of(config))
        work = _work(everywhere((np.concatenate(timed), _updated(alone, ids)), world))
        waited = max(0.0, _slowest(met, world) - work.seconds)
        found[way] = {
            "ms/step": 1000 * statistics.mean(seconds),
            "predicted ms/step": 1000 * (waited + step_seconds(sent, work, shape, kind, cluster)),
            "waits ms/step": 1000 * waited,
            "predicted link bytes": sent.between,
            "link bytes": sum(of_ranks) / cluster.nodes / steps,
            "interface link bytes": sum(of_interfaces) / cluster.nodes / steps / ROUNDS if cluster.nodes > 1 else 0.0,
        }
        del ours, alone
    joined = {name: value for name, value in asdict(cluster).items() if name not in ("latency", "message")}
    return {"cluster": joined, "ways": found}


def _with_links(cluster: Cluster, alone: Ours, ids: Sequence[Tensor]) -> Cluster:
    """How fast data go within nodes and between them, beyond messages of next to nothing, beside the work of a step."""
    world = alone.tables.world
    nodes = np.arange(world.size) // cluster.local
    kinds = [np.zeros(world.size, dtype=bool), nodes == nodes[world.rank], nodes != nodes[world.rank]]
    met: list[list[np.ndarray]] = [[] for _ in kinds]
    for _ in range(ROUNDS):
        for of_kind, peers in zip(met, kinds, strict=True):
            of_kind.append(_timed(alone, ids, np.where(peers, PROBED_BYTES, NOTHING).tolist()))
    nothing, near, far = (_slowest(of_kind, world) for of_kind in met)
    mates, strangers = cluster.local - 1, world.size - cluster.local

    def speed(ranks: int, peers: int, seconds: float) -> float:
        return ranks * peers * KINDS * PROBED_BYTES / max(seconds - nothing, seconds / 100)  # noise may hide it

    found = replace(cluster, latency=0.0, message=0.0)  # they are in what steps with exchanges of nothing take
    if mates:
        found = replace(found, within=speed(1, mates, near))
    if strangers:
        found = replace(found, link=speed(cluster.local, strangers, far))
    return found


def predict(
    shape: Shape, kind: IdKind, config: TablesConfig, steps: int, clusters: Sequence[Cluster], device: torch.device
) -> list[dict[str, Any]]:
    """A line for each cluster and way, from what this rank takes for the work of one of each cluster."""
    lines = []
    for cluster in clusters:
        get_logger().info(f"the work of one of {cluster.ranks:,} ranks, {WARM_UP + steps} steps")
        ways = get_args(ExchangeKind) if cluster.nodes > 1 else ("flat",)
        sent = {way: count(way, shape, kind, cluster, [0], row_bytes_of(config)) for way in ways}
        world = World(0, cluster.ranks, 0, min(cluster.local, cluster.ranks), device)
        ids = _ids(shape, kind, world, range(WARM_UP + steps))
        for way, one in sent.items():
            of_way = config.model_copy(update={"exchange": way})
            alone = _ours(mirrored_tables(TableSpec(NAME, shape.rows, shape.dim), SEED, world, of_way), of_way, shape)
            work = _work([(_timed(alone, ids), _updated(alone, ids))])
            seconds = step_seconds(one, work, shape, kind, cluster)
            share = one.between / sent["flat"].between if one.between else 1.0
            lines.append(
                {"ranks": cluster.ranks, "way": way, **asdict(one), "of flat": share, "ms/step": 1000 * seconds}
            )
        distinct_keys.cache_clear()
    return lines


def _timed(alone: Ours, ids: Sequence[Tensor], beside: Sequence[int] | None = None) -> np.ndarray:
    """Of the steps after the first ones: seconds, and of these to move rows, float64 [steps, 2].

    With so many bytes for each rank, which is there, in each exchange `beside`; then collective.
    """
    world, mirror = alone.tables.world, alone.tables.exchange
    assert isinstance(mirror, Mirror)
    if beside is not None:
        barrier(world)
        mirror.beside = Exchange(world, Traffic(), open_connections("tables")), beside
    found = []
    last, copied = now(world.device), mirror.seconds
    for _ in alone.steps(ids):
        moment = now(world.device)
        found.append((moment - last - (mirror.seconds - copied), alone.watch.seconds()["update"]))
        last, copied = moment, mirror.seconds
    mirror.beside = None
    return np.array(found[WARM_UP:])


def _slowest(timed: Sequence[np.ndarray], world: World) -> float:
    """Seconds of a step of the slowest rank, a median of what was `_timed`; collective."""
    return max(everywhere(float(np.median(np.concatenate(timed)[:, 0])), world))


def _updated(alone: Ours, ids: Sequence[Tensor]) -> float:
    """Rows that are moved in each of these steps, as a mean."""
    plans = (alone.tables.plan([{NAME: (NAME, of_step)}]) for of_step in ids[WARM_UP:])
    return float(np.mean([len(plan.groups[0].rows) for plan in plans]))


def _work(of_ranks: Sequence[tuple[np.ndarray, float]]) -> Work:
    """Of what was timed on each rank and the rows that it moves: medians over the steps, of the slowest."""
    timed, updated = zip(*of_ranks, strict=True)
    seconds, update = np.max([np.median(of_rank, axis=0) for of_rank in timed], axis=0).tolist()
    return Work(seconds, update, float(np.mean(updated)))


def row_bytes_of(config: TablesConfig) -> int:
    """Of a number of a row and of its gradient, as they travel."""
    return sum(getattr(torch, name).itemsize for name in (config.row_format, config.gradient_format))


def _ours(tables: ShardedTables, config: TablesConfig, shape: Shape) -> Ours:
    gradient = 0.01 * torch.randn(shape.num_ids, shape.dim, device=tables.world.device)
    optimizer = make_table_optimizer(config, tables, LEARNING_RATE, 0.0)
    return Ours(tables, optimizer, gradient, ahead=False)


def _ids(shape: Shape, kind: IdKind, world: World, steps: range) -> list[Tensor]:
    place = shape.rows, shape.num_samples, shape.ids_per_sample, SEED, world.rank
    return [random_ids(kind, *place, step) for step in steps]


def _sent_by_interface() -> int:
    """Bytes that the interface to other hosts has sent so far, with all headers; 0 where it is not known, or is a
    loopback's, which has all that ranks of one machine send each other."""
    with suppress(OSError, KeyError):
        name = os.environ["GLOO_SOCKET_IFNAME"]
        if "loopback" not in psutil.net_if_stats()[name].flags:
            return int(psutil.net_io_counters(pernic=True)[name].bytes_sent)
    return 0
