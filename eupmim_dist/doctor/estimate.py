"""What a training would take on W ranks, found on one: memory, bytes between nodes, time of a step.

Nothing is measured but what the batches ask for; activations are not counted.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from eupmim_dist import assemble
from eupmim_dist.config.registry import build
from eupmim_dist.config.schema import Config
from eupmim_dist.data.store import InteractionStore
from eupmim_dist.doctor.traffic import FLOAT, StepTraffic, mean_of, traffic_of_step
from eupmim_dist.errors import UserError
from eupmim_dist.models.features import features_of, trained_or_not
from eupmim_dist.objectives.interface import Objective
from eupmim_dist.parallel.placement import is_replicated
from eupmim_dist.parallel.world import World
from eupmim_dist.train.room import TABLES, table_bytes

BATCH = "a batch: rows, gradients, ids"
STEPS = 3
"""Steps whose batches are drawn; the mean counts."""
BUCKET = 50_000_000
"""Numbers that DeepSpeed sets aside at most to reduce gradients (parallel/zero.py)."""
NCCL_BYTES, NCCL_BYTES_OF_A_NEIGHBOUR = 1_060_000_000, 470_000_000
"""What NCCL took of each of 8 H100 in one host before its first all-to-all, and for every other GPU there after it, by
a report (github.com/NVIDIA/nccl, issue 1685); between hosts it shares buffers."""


@dataclass(frozen=True)
class Plan:
    """What is asked about."""

    world: int
    per_node: int
    zero: int = 0
    link_gbps: float = 100.0
    """Of a node, each way."""
    latency_us: float = 20.0
    step_ms: float | None = None
    """What one rank takes for its share of a step, without the others."""


@dataclass(frozen=True)
class TableRoom:
    name: str
    rows: int
    dim: int
    held: int
    """Rows that a rank holds."""
    weights: int
    state: int
    """Bytes of what the optimizer holds beside them."""


@dataclass(frozen=True)
class Estimate:
    plan: Plan
    tables: list[TableRoom]
    parameters: int
    memory: dict[str, int]
    """Bytes of a rank, at the least, by what for; activations come on top."""
    ranking: int
    """Bytes that an evaluation takes, in place of those of a batch."""
    nccl: int
    sent: dict[str, tuple[float, float]]
    """Bytes of a step by kind: of a rank, the mean and the most."""
    link: float
    """Bytes of a step over the busiest link of a node, one way."""
    sums: int
    transfer_ms: float
    latency_ms: float
    share: int
    """Samples of a step on a rank."""
    left_out: list[str]

    @property
    def total(self) -> int:
        return sum(self.memory.values()) + max(self.ranking - self.memory[BATCH], 0)

    @property
    def exchange_ms(self) -> float:
        return self.transfer_ms + self.latency_ms

    @property
    def step_ms(self) -> tuple[float, float] | None:
        """If all communication hides behind the computation, and if none does."""
        own = self.plan.step_ms
        return None if own is None else (max(own, self.exchange_ms), own + self.exchange_ms)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"total": self.total, "exchange_ms": self.exchange_ms, "step_ms": self.step_ms}


def estimate(config: Config, plan: Plan) -> Estimate:
    """Raises UserError for a configuration that could not be trained."""
    if config.world_size not in (None, plan.world):
        raise UserError(f"--world {plan.world}: the configuration is for world_size {config.world_size}; use that")
    alone, world = World(0, 1, 0, 1, torch.device("cpu")), World(0, plan.world, 0, plan.per_node, torch.device("cpu"))
    store = InteractionStore.open(config.data.dir, verify=False)
    model = assemble.make_model(config, assemble.shape_of_data(config, store))
    task = assemble.make_task(config, alone, store, model)
    objective: Objective = build("objective", config.objective.name, Objective, config.objective, model, task)
    specs = trained_or_not(config.model, store, model.tables())
    features = features_of(config.model, store, specs)
    traffic = mean_of(
        [
            traffic_of_step(config, model, task, objective, specs, features, plan.world, step)
            for step in range(min(STEPS, config.train.max_steps))
        ]
    )
    tables = []
    for spec in [*specs, *(feature.spec for feature in features)]:
        whole = is_replicated(spec.name, spec.rows, plan.world, config.tables)
        held = spec.rows if whole else -(-spec.rows // plan.world)
        weights = table_bytes(spec, config, world, training=False)
        state = table_bytes(spec, config, world, training=True) - weights
        tables.append(TableRoom(spec.name, spec.rows, spec.dim, held, weights, state))
    parameters = sum(p.numel() for p in model.parameters())
    room = assemble.needed_room(config, store, world)
    memory = {
        "tables": sum(table.weights + table.state for table in tables),
        "what is known of items, graph": room[TABLES] - sum(t.weights + t.state for t in tables),
        "dense network": _dense_bytes(parameters, plan),
        BATCH: int(traffic.looked_up.max()),
    }
    return Estimate(
        plan=plan,
        tables=tables,
        parameters=parameters,
        memory={what: size for what, size in memory.items() if size or what == BATCH},
        ranking=assemble.needed_room(config, store, world, training=False)["a batch"],
        nccl=NCCL_BYTES + NCCL_BYTES_OF_A_NEIGHBOUR * (min(plan.per_node, plan.world) - 1),
        sent={kind: _of_a_rank(traffic, kind) for kind, sent in traffic.sent.items() if sent.any()},
        link=(link := _busiest(traffic, plan)),
        sums=traffic.sums,
        transfer_ms=link * 8 / (plan.link_gbps * 1e9) * 1e3,
        latency_ms=_latency_us(traffic, plan) / 1e3,
        share=-(-config.train.global_batch_size // plan.world),
        left_out=[
            *(["propagation over the graph"] if model.propagation() is not None else []),
            *(
                ["two_level (all is sent as by flat; `bench scaling --simulate` has both)"]
                if config.tables.exchange == "two_level"
                else []
            ),
        ],
    )


def _dense_bytes(parameters: int, plan: Plan) -> int:
    """Weights, gradients and Adam's two moments; ZeRO has a rank's part of a copy of the weights and of the moments,
    ZeRO-2 of the gradients too, and sets room aside to reduce them."""
    own = -(-parameters // plan.world)
    if plan.zero == 0:
        return 4 * FLOAT * parameters
    gradients = parameters if plan.zero == 1 else own
    return FLOAT * (parameters + gradients + 3 * own + min(parameters, BUCKET))


def _of_a_rank(traffic: StepTraffic, kind: str) -> tuple[float, float]:
    sent = traffic.sent[kind].sum(1)
    return float(sent.mean()), float(sent.max())


def _busiest(traffic: StepTraffic, plan: Plan) -> float:
    between = traffic.between_nodes(plan.per_node)
    return float(max(between.sum(0).max(), between.sum(1).max()))


def _latency_us(traffic: StepTraffic, plan: Plan) -> float:
    """Rows and gradients one after another (ids go ahead of the step), sums up and down a tree of ranks."""
    if plan.world == 1:
        return 0.0
    return plan.latency_us * (2 + 2 * math.ceil(math.log2(plan.world)) * (traffic.sums + 1))  # and the verdict's
