"""What a step of a sharded table sends and takes on the ranks that are there, beside what is predicted of it."""

import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
import torch
from torch import Tensor

from eupmim_dist.bench.gauges import now
from eupmim_dist.bench.ids import IdKind, random_ids
from eupmim_dist.bench.rivals import LEARNING_RATE, NAME, Shape
from eupmim_dist.bench.scaling import SEED, Cluster, Costs, Way, count, distinct_keys, step_seconds
from eupmim_dist.bench.tables import WARM_UP, Ours
from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import make_table_optimizer
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.collectives import barrier
from eupmim_dist.parallel.exchange import Exchange, Traffic, open_connections
from eupmim_dist.parallel.merge import merge_rows
from eupmim_dist.parallel.route import ExchangeKind
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger

PROBED_ROWS = 10_000
PROBED_BYTES = 4 << 20
"""That a rank sends each of some others to see how fast it goes."""


def measure_exchanges(
    shape: Shape, kind: IdKind, config: TablesConfig, steps: int, costs: Costs, cluster: Cluster, world: World
) -> dict[str, Any]:
    """Each exchange's step, measured and as predicted from `costs` and from how fast these links are found to be;
    `cluster` has the seconds of a message. Collective, the same on every rank.

    Times are medians over the steps, as those of `costs` are. Bytes are those of a node and step that go to other
    nodes: of what is exchanged, and all that its interface counts.
    """
    shared = crowding(world)
    cluster = _with_links(cluster, world)
    found: dict[str, Any] = {}
    for way in get_args(ExchangeKind):
        get_logger(world.rank).info(f"{way}: {WARM_UP + steps} steps")
        tables = ShardedTables(
            [TableSpec(NAME, shape.rows, shape.dim)], SEED, world, config.model_copy(update={"exchange": way})
        )
        ours = _ours(tables, config, shape)
        for _ in ours.steps(_ids(shape, kind, world, range(WARM_UP))):
            pass
        tables.traffic.clear()
        ids = _ids(shape, kind, world, range(WARM_UP, WARM_UP + steps))
        barrier(world)
        before, marks = _sent_by_interface(), [now(world.device)]
        for _ in ours.steps(ids):
            marks.append(now(world.device))
        taken = statistics.median(np.diff(marks).tolist())
        barrier(world)
        counted = _sent_by_interface() - before
        between = sum(cost.between_nodes for cost in tables.traffic.values())
        ranks = everywhere((taken, between, counted if world.local_rank == 0 else 0), world)
        seconds, of_ranks, of_interfaces = zip(*ranks, strict=True)
        sent = count(way, shape, kind, cluster, range(WARM_UP, WARM_UP + steps), row_bytes_of(config))
        found[way] = {
            "ms/step": 1000 * statistics.mean(seconds),
            "predicted ms/step": 1000 * step_seconds(sent, costs, shape, kind, cluster, shared),
            "predicted link bytes": sent.between,
            "link bytes": sum(of_ranks) / cluster.nodes / steps,
            "interface link bytes": sum(of_interfaces) / cluster.nodes / steps if cluster.nodes > 1 else 0.0,
        }
        del ours, tables
    return {"ranks per processor": shared, "cluster": asdict(cluster), "ways": found}


def _with_links(cluster: Cluster, world: World) -> Cluster:
    """What exchanges over these ranks' links take, by themselves: of next to nothing, within nodes, between nodes."""
    exchange = Exchange(world, Traffic(), open_connections("tables"))
    node = world.rank // cluster.local

    def seconds(size: int, *, near: bool | None) -> float:
        """Of `size` bytes to each other rank, or to those of the same node or not; of the slowest rank, the median."""
        peers = [near is None or (peer // cluster.local == node) == near for peer in range(world.size)]
        numbers = [size // 4 * to for to in peers]
        send, receive = ([torch.zeros(number, device=world.device) for number in numbers] for _ in range(2))
        taken = []
        for _ in range(WARM_UP + 9):
            barrier(world)
            started = now(world.device)
            with exchange.receiving("rows", [receive]) as go:
                go([send])
            taken.append(now(world.device) - started)
        return max(everywhere(statistics.median(taken[WARM_UP:]), world))

    def speed(num_bytes: int, *, near: bool) -> float:
        """Beyond what as many messages of next to nothing take."""
        whole = seconds(PROBED_BYTES, near=near)
        return num_bytes / max(whole / 2, whole - seconds(4, near=near))  # on a machine at work 4 bytes may take longer

    latency = max(0.0, seconds(4, near=None) - (world.size - 1) * cluster.message)
    found = replace(cluster, latency=latency)
    mates, far = cluster.local - 1, world.size - cluster.local
    if mates:
        found = replace(found, within=speed(mates * PROBED_BYTES, near=True))
    if far:
        found = replace(found, link=speed(cluster.local * far * PROBED_BYTES, near=False))
    return found


def predict(
    shape: Shape, kind: IdKind, config: TablesConfig, costs: Costs, clusters: Sequence[Cluster]
) -> list[dict[str, Any]]:
    """A line for each cluster and way."""
    lines = []
    for cluster in clusters:
        ways = get_args(Way) if cluster.nodes > 1 else ("flat",)
        sent = {way: count(way, shape, kind, cluster, [0], row_bytes_of(config)) for way in ways}
        for way, one in sent.items():
            share = one.between / sent["flat"].between if one.between else 1.0
            seconds = step_seconds(one, costs, shape, kind, cluster, 1.0)
            lines.append(
                {"ranks": cluster.ranks, "way": way, **asdict(one), "of flat": share, "ms/step": 1000 * seconds}
            )
        distinct_keys.cache_clear()
    return lines


def measure_costs(shape: Shape, kind: IdKind, config: TablesConfig, steps: int, world: World) -> Costs:
    """Of one rank alone, while the others wait; collective, the same on every rank."""
    mine = _costs(shape, kind, config, steps, world.device) if world.is_main else None
    costs = everywhere(mine, world)[0]
    assert costs is not None, "rank 0 has measured"
    return costs


def _costs(shape: Shape, kind: IdKind, config: TablesConfig, steps: int, device: torch.device) -> Costs:
    alone = World(rank=0, size=1, local_rank=0, local_size=1, device=device)
    tables = ShardedTables([TableSpec(NAME, shape.rows, shape.dim)], SEED, alone, config)
    ours = _ours(tables, config, shape)
    seconds, updates = [], []
    last = now(device)
    for _ in ours.steps(_ids(shape, kind, alone, range(WARM_UP + steps))):
        moment = now(device)
        seconds.append(moment - last)
        updates.append(ours.watch.seconds()["update"])
        last = moment
    weight, rows = tables.groups[0].weight, min(PROBED_ROWS, shape.rows)
    scattered = torch.from_numpy(np.random.default_rng(SEED).permutation(shape.rows)[:rows]).to(device)
    values = torch.ones(2 * rows, shape.dim, device=device)
    order = torch.randperm(2 * rows, dtype=torch.int32, device=device)
    starts = torch.arange(0, 2 * rows, 2, dtype=torch.int32, device=device)
    return Costs(
        step=statistics.median(seconds[WARM_UP:]),
        update=statistics.median(updates[WARM_UP:]),
        rows=float(np.mean([len(distinct_keys(shape, kind, 0, step)) for step in range(WARM_UP, WARM_UP + steps)])),
        copy=_seconds(lambda: weight.index_select(0, scattered), device) / rows,
        merge=_seconds(lambda: merge_rows(values, order, starts), device) / (2 * rows),
    )


def crowding(world: World) -> float:
    """How many ranks take turns on each processor of this machine, on which several hosts may be; collective."""
    machine = Path("/proc/sys/kernel/random/boot_id")
    every = everywhere(machine.read_text() if machine.exists() else "", world)
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_this = max(every.count(each) for each in every)
    return max(1.0, on_this * torch.get_num_threads() / processors) if world.device.type == "cpu" else 1.0


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
    """Bytes that the interface to other hosts has sent so far, with all headers; 0 where it is not known."""
    with suppress(OSError, KeyError):
        return int(psutil.net_io_counters(pernic=True)[os.environ["GLOO_SOCKET_IFNAME"]].bytes_sent)
    return 0


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(7):
        started = now(device)
        work()
        taken.append(now(device) - started)
    return statistics.median(taken)
