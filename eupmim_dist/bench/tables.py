"""Speed of embedding tables: ours, TorchRec and DDP on the same ids, by turns, in the same processes.

A step is look-up, backward with a given gradient of every looked-up row, and update. n ids a step and rank, of which u
are distinct; D the table's width; W ranks.
"""

import gc
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from eupmim_dist.bench.gauges import copy_bandwidth, now, peak_bytes, start_of_peak
from eupmim_dist.bench.ids import IdKind, random_ids
from eupmim_dist.bench.rivals import (
    LEARNING_RATE,
    NAME,
    ReplicatedTable,
    Shape,
    System,
    TorchRec,
    Unavailable,
    Variant,
    load_torchrec,
)
from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.models.interface import TableSpec
from eupmim_dist.optim.tables import TableOptimizer, make_table_optimizer
from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.collectives import barrier
from eupmim_dist.parallel.exchange import Connections
from eupmim_dist.parallel.plan import Plan
from eupmim_dist.parallel.prefetch import Prefetcher
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import World
from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.telemetry.machine import device_name

SystemName = Literal["ours", "torchrec", "torchrec-dedup", "torchrec-bags", "ddp", "ddp-dense"]
SYSTEMS = get_args(SystemName)
SEED = 1
WARM_UP, TAIL = 3, 1
"""Steps of a round that do not count: the first ones, and the last, beside which nothing is prefetched."""
SLOW_STEPS = 5
SMALL_ROWS = 1000
EXCHANGES = ("counts", "ids", "rows", "gradients")


class Ours(System):
    """ShardedTables; `ahead`: a thread plans the next step meanwhile, as in training."""

    def __init__(self, tables: ShardedTables, optimizer: TableOptimizer, gradient: Tensor, ahead: bool) -> None:
        super().__init__(gradient, tables.world)
        self.title = "ours prefetch" if ahead else "ours"
        self.tables, self.ahead = tables, ahead
        self.waited: list[float] = []
        """Seconds of each step of the last run that it spent in exchanges, or waiting for a plan made ahead."""
        self._optimizer = optimizer

    def prepare(self, ids: Tensor) -> Tensor:
        return ids

    def steps(self, prepared: Sequence[Tensor]) -> Iterator[None]:
        def plan(step: int, connections: Connections | None) -> Plan:
            return self.tables.plan([{NAME: (NAME, prepared[step])}], connections)

        self.waited.clear()
        with Prefetcher(plan, self.tables.world, len(prepared) - 1, self.ahead) as plans:
            for step in range(len(prepared)):
                before = self._seconds(plans)
                self.step(partial(plans.take, step))
                self.waited.append(self._seconds(plans) - before)
                yield

    def step(self, prepared: Callable[[], Plan]) -> None:
        self.watch.start()
        lookup = self.tables.fetch(prepared())
        self.watch.mark("forward")
        # Through a view: autograd would copy the given gradient for a leaf, but not the one that a model's own
        # operations make, nor here for TorchRec's rows, which are no leaf.
        lookup.rows[0][NAME].view(-1, self.gradient.shape[-1]).backward(self.gradient)
        gradients = lookup.gradients(1 / self.tables.world.size)
        self.watch.mark("backward")
        self._optimizer.step(gradients)
        self.watch.mark("update")

    def _seconds(self, plans: Prefetcher) -> float:
        kinds = ("rows", "gradients") if self.ahead else EXCHANGES
        traffic = self.tables.traffic
        return self.ahead * plans.waited_seconds + sum(traffic[kind].seconds for kind in kinds if kind in traffic)


@dataclass
class Measured:
    """What one system gave on this rank."""

    system: System
    memory: dict[str, int]  # where -> bytes at the peak above those held before the system was made
    seconds: list[list[float]] = field(default_factory=list)  # [rounds][steps]
    phases: list[dict[str, float]] = field(default_factory=list)  # seconds by step
    waited: list[float] = field(default_factory=list)  # seconds by step
    sent: Counter[str] = field(default_factory=Counter)  # bytes by exchange, in all steps


@dataclass
class Needs:
    """What this rank's ids ask for, in all steps, found without the code that is measured."""

    steps: int = 0
    distinct: int = 0
    remote: int = 0  # distinct ids of rows that other ranks hold

    def add(self, ids: Tensor, held: Tensor | None) -> None:
        """`held`: bool [rows], whether this rank holds the row."""
        distinct = torch.unique(ids)
        self.steps += 1
        self.distinct += len(distinct)
        self.remote += 0 if held is None else int((~held[distinct]).sum())


def measure_tables(
    shape: Shape,
    kind: IdKind,
    names: Sequence[SystemName],
    config: TablesConfig,
    steps: int,
    rounds: int,
    world: World,
) -> dict[str, Any]:
    """Measures each system for `steps` steps, by turns, `rounds` times; collective, the same result on every rank.

    Times are medians over all counted steps of their mean over the ranks.
    """
    per_round = WARM_UP + steps + TAIL

    def ids_of(round_: int) -> list[Tensor]:
        place = shape.rows, shape.num_samples, shape.ids_per_sample, SEED, world.rank
        return [random_ids(kind, *place, round_ * per_round + step) for step in range(per_round)]

    gradient = 0.01 * torch.randn(shape.num_ids, shape.dim, device=world.device)
    measured: dict[str, Measured] = {}
    left_out: dict[str, str] = {}
    warm_up = ids_of(rounds)[:WARM_UP]
    for name in names:
        try:
            measured |= _build(name, shape, gradient, config, world, warm_up)
        except Unavailable as reason:
            left_out[name] = str(reason)
    needs, held = Needs(), _held(measured, shape)
    log = get_logger(world.rank)
    for round_ in range(rounds):
        log.info(f"round {round_ + 1} of {rounds}: {', '.join(one.system.title for one in measured.values())}")
        ids = ids_of(round_)
        for each in ids:
            needs.add(each, held)
        for one in measured.values():
            if not one.system.slow:
                _run_round(one, ids, world)
            elif round_ == 0:
                _run_round(one, ids[: WARM_UP + SLOW_STEPS + TAIL], world)
    totals = everywhere(needs, world)
    systems = {name: _summary(one, shape, config, totals, world) for name, one in measured.items()}
    return {
        "device": device_name(world.device),
        "ranks": world.size,
        "threads per rank": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": shape.rows,
        "dim": shape.dim,
        "samples per rank": shape.num_samples,
        "ids per sample": shape.ids_per_sample,
        "ids": kind,
        "ids per distinct id": shape.num_ids / (statistics.mean(each.distinct for each in totals) / needs.steps),
        "optimizer": config.optimizer,
        "row format": config.row_format,
        "gradient format": config.gradient_format,
        "memory": config.memory,
        "steps": steps,
        "rounds": rounds,
        "copy GB/s": copy_bandwidth(world.device) / 1e9 if world.device.type == "cuda" else None,
        "systems": systems,
        "ratios": _ratios(systems),
        "left out": left_out,
    }


def _build(
    name: SystemName,
    shape: Shape,
    gradient: Tensor,
    config: TablesConfig,
    world: World,
    warm_up: list[Tensor],
) -> dict[str, Measured]:
    """Makes a system and has it make some steps, with its memory at the peak of that."""
    if name.startswith("torchrec"):
        load_torchrec()
    # A small one first: libraries that are loaded when first used are no memory of the tables.
    small = replace(shape, rows=min(shape.rows, SMALL_ROWS), num_samples=1)
    few = [ids[:1] % small.rows for ids in warm_up]
    _step_all(_make(name, small, gradient[: small.num_ids], config, world), few)
    before = start_of_peak(world.device)
    systems = _make(name, shape, gradient, config, world)
    _step_all(systems, warm_up)
    peak = peak_bytes(world.device)
    memory = {where: peak[where] - before[where] for where in peak}
    return {key: Measured(system, memory) for key, system in systems.items()}


def _make(name: SystemName, shape: Shape, gradient: Tensor, config: TablesConfig, world: World) -> dict[str, System]:
    if name == "ours":
        tables = ShardedTables([TableSpec(NAME, shape.rows, shape.dim)], SEED, world, config)
        optimizer = make_table_optimizer(config, tables, LEARNING_RATE, 0.0)
        return {
            "ours": Ours(tables, optimizer, gradient, ahead=False),
            "ours-prefetch": Ours(tables, optimizer, gradient, ahead=True),
        }
    if name.startswith("torchrec"):
        variant = cast(Variant, name.partition("-")[2])
        return {name: TorchRec(shape, gradient, config.optimizer, world, variant)}
    return {name: ReplicatedTable(shape, gradient, config.optimizer, world, dense=name == "ddp-dense")}


def _step_all(systems: dict[str, System], ids: list[Tensor]) -> None:
    for system in systems.values():
        for _ in system.steps([system.prepare(each) for each in ids]):
            pass


def _run_round(one: Measured, ids: list[Tensor], world: World) -> None:
    system = one.system
    prepared = [system.prepare(each) for each in ids]
    if isinstance(system, Ours):
        system.tables.traffic.clear()
    seconds, phases = [], []
    gc.collect()
    barrier(world)
    last = now(world.device)
    for _ in system.steps(prepared):  # no barrier between steps: they follow one another as in training
        moment = now(world.device)
        seconds.append(moment - last)
        last = moment
        phases.append(system.watch.seconds())
    one.seconds.append(seconds[WARM_UP:-TAIL])
    one.phases += phases[WARM_UP:-TAIL]
    if isinstance(system, Ours):
        one.waited += system.waited[WARM_UP:-TAIL]
        one.sent.update({kind: cost.bytes for kind, cost in system.tables.traffic.items()})


def _summary(one: Measured, shape: Shape, config: TablesConfig, needs: list[Needs], world: World) -> dict[str, Any]:
    ranks = everywhere((one.seconds, one.phases, one.memory, one.waited, one.sent), world)
    seconds = torch.tensor([of_rank for of_rank, *_ in ranks], dtype=torch.float64).mean(0)  # [rounds, steps]
    median = float(seconds.quantile(0.5))
    phases = {
        phase: 1000 * statistics.median(statistics.mean(step) for step in zip(*by_rank, strict=True))
        for phase in one.phases[0]
        for by_rank in [[[step[phase] for step in of_rank] for _, of_rank, *_ in ranks]]
    }
    result = {
        "title": one.system.title,
        "ms/step": 1000 * median,
        "ms/step by round": (1000 * seconds.quantile(0.5, dim=1)).tolist(),
        "ids/s": world.size * shape.num_ids / median,
        "ms by phase": phases,
        "peak MB": {where: max(memory[where] for _, _, memory, *_ in ranks) / 1e6 for where in one.memory},
    }
    if not isinstance(one.system, Ours):
        return result
    distinct, remote = (
        statistics.mean(getattr(each, kind) / each.steps for each in needs) for kind in ("distinct", "remote")
    )
    if world.device.type == "cuda":
        # Rows read and their copies written, gradients read and their sums written, these and the rows read
        # again and the rows written.
        result["GB/s"] = 4 * shape.dim * (2 * shape.num_ids + 5 * distinct) / median / 1e9
    if world.size == 1:
        return result
    if world.device.type == "cpu":  # on GPUs the host's seconds in an exchange say nothing
        waited = sum(sum(waited) for *_, waited, _ in ranks) / world.size
        result["exposed communication %"] = 100 * waited / float(seconds.sum())
    if one.system.ahead:
        return result
    requests = everywhere(one.system.tables.requests[NAME], world)
    least = {
        "ids": remote * (4 if shape.rows < 2**31 else 8),
        "rows": remote * shape.dim * _bytes(config.row_format),
        "gradients": remote * shape.dim * _bytes(config.gradient_format),
    }
    sent = {kind: statistics.mean(of_rank[kind] for *_, of_rank in ranks) / needs[0].steps for kind in one.sent}
    return result | {
        "bytes sent": sent,
        "least bytes": least,
        "imbalance": max(requests) / statistics.mean(requests),
    }


def _ratios(systems: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times as fast as each other system ours is."""
    return {
        ours: {rival: systems[rival]["ms/step"] / systems[ours]["ms/step"] for rival in systems if rival[:4] != "ours"}
        for ours in systems
        if ours.startswith("ours")
    }


def _held(measured: dict[str, Measured], shape: Shape) -> Tensor | None:
    for one in measured.values():
        if isinstance(one.system, Ours) and one.system.tables.world.size > 1:
            held = torch.zeros(shape.rows, dtype=torch.bool)
            held[one.system.tables.shards[NAME].ids()] = True
            return held
    return None


def _bytes(name: str) -> int:
    return torch.empty(0, dtype=getattr(torch, name)).element_size()
