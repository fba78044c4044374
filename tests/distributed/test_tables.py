"""Sharded tables and their optimizers, over 1 to 4 ranks, against whole tables in one process (tables_plain.py).

A scenario is what the ranks train on: tables, settings, and which ids each rank asks for in each part of each step.
W ranks; u = the unit roundoff of a wire format, 2^-8 for bfloat16 and 2^-11 for float16. The bounds:

rows       what a rank gets is what their owner holds, bit by bit, rounded once to the wire format if that is another
           rank: within u of it, relatively, or 2^-25 where float16 has no exponent for it
gradients  per element: u * s for the one rounding of each rank's sum that travels, where s is the sum of the absolute
           values of all contributions, and 2^-37 a rank where float16 has no exponent for it; both twice where a
           node's sums travel on as one; plus 1e-6 of the table's largest s for the order of the sums
weights, optimizer state, norm: 1e-6 of the largest magnitude in the table (of the norm itself)

Gradients are compared first and the oracle then steps with the ranks' ones, so that what is allowed in one step is
not amplified by Adam, which divides by the size of a gradient, in the next. For the same reason gradients are
multiples of about 1/313, clipped seldom to less than a tenth, and l2 is small: a gradient that is all but cancelled
by l2 * row would be all rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from eupmim_dist.config.schema import TablesConfig
from eupmim_dist.data.batch import NO_ROW
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import Rows, TableSpec, Uses
from eupmim_dist.optim.tables import TABLE_OPTIMIZERS, make_table_optimizer
from eupmim_dist.parallel.lookup import RowGradients
from eupmim_dist.parallel.placement import RowOrder
from eupmim_dist.parallel.plan import Plan
from eupmim_dist.parallel.prefetch import Prefetcher
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.verdict import judge
from eupmim_dist.parallel.world import World, init_world
from tests.distributed.spawn import Ranks
from tests.oracles.tables_plain import PLAIN_OPTIMIZERS, PlainTable, initial_weight

SEED = 11
LEARNING_RATE = 0.02
TOLERANCE = 1e-6
ROUNDOFF = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}
FLOAT16_SMALLEST = 2.0**-25 / 4096  # half of float16's smallest number, over the scale that gradients are sent at
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
EVERYTHING = 1 << 40  # replicate_below that replicates every table
OPTIMIZERS = list(TABLE_OPTIMIZERS)


@dataclass(frozen=True)
class Ask:
    """Ids of one use of a table in one micro-batch of a rank."""

    shape: tuple[int, ...]
    kind: str  # padding: all NO_ROW; few: many duplicates; edges: first, last and NO_ROW; any
    seed: int = 0
    used: bool = True  # by the loss: rows may be asked for and get no gradient

    def ids(self, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        if self.kind == "padding":
            return torch.full(self.shape, NO_ROW)
        if self.kind == "edges":
            return torch.tensor([0, rows - 1, NO_ROW])[torch.randint(3, self.shape, generator=generator)]
        return torch.randint(NO_ROW, min(rows, 3) if self.kind == "few" else rows, self.shape, generator=generator)


Part = dict[str, Ask]
"""By the name of a use, whose first word is its table."""


@dataclass(frozen=True)
class Scenario:
    world_size: int
    tables: tuple[TableSpec, ...]
    config: TablesConfig
    steps: list[list[list[Part]]]  # [step][rank][micro-batch]
    local_size: int = 1  # ranks of a node
    l2: float = 0.0
    scale: float = 1.0
    max_norm: float | None = None
    planning: str = "step"  # step: plan when needed; first: all plans before any step; prefetch: in its thread
    poisoned: tuple[int, int] | None = None  # (step, rank) whose loss is not a number
    linear: bool = False  # a small loss, linear in the rows: gradients do not depend on how the rows were rounded

    def uses(self, step: int, rank: int) -> list[Uses]:
        rows = {spec.name: spec.rows for spec in self.tables}
        return [
            {name: (table_of(name), ask.ids(rows[table_of(name)])) for name, ask in part.items()}
            for part in self.steps[step][rank]
        ]

    @property
    def two_levels(self) -> bool:
        return self.config.exchange == "two_level" and 1 < self.local_size < self.world_size

    def replicated(self, spec: TableSpec) -> bool:
        return self.world_size > 1 and spec.rows < self.config.replicate_below

    def loss(self, rows: Rows, step: int, rank: int, part: int) -> Tensor:
        """A loss whose gradient differs for every use of a row; the same function for float32 and float64."""
        total = torch.zeros(())
        for number, (name, values) in enumerate(sorted(rows.items())):
            if not self.steps[step][rank][part][name].used:
                continue
            counter = torch.arange(values.numel()).view(values.shape) * 7919 + 911 * number + 613 * rank + 307 * part
            weight = ((counter % 1009 - 504) / 313).to(values.dtype)
            if (step, rank) == self.poisoned:
                weight = weight * torch.nan
            # softplus: its gradient, unlike a difference, is as precise as its argument, so roundings stay relative.
            total = total + (weight * values / 1000 if self.linear else weight * F.softplus(values)).sum()
        return total


def table_of(use: str) -> str:
    return use.partition(" ")[0]


@dataclass
class Outcome:
    """What a rank saw."""

    ids: dict[str, Tensor]  # of its shards
    weights: list[dict[str, Tensor]]  # its shards before each step and after the last
    rows: list[list[Rows]]  # [step][micro-batch]
    gradients: list[dict[str, tuple[Tensor, Tensor]]]  # [step], row ids and values by table
    norms: list[float]
    ok: list[bool]
    state: dict[str, dict[str, Tensor]]
    bytes: dict[str, tuple[int, int]]  # sent to others, and of that to other nodes
    requests: dict[str, int]


def train(scenario: Scenario) -> Outcome:
    world, local = init_world(cpu=True), scenario.local_size
    return train_in(replace(world, local_rank=world.rank % local, local_size=local), scenario)


def train_in(world: World, scenario: Scenario) -> Outcome:
    tables = ShardedTables(scenario.tables, SEED, world, scenario.config)
    optimizer = make_table_optimizer(scenario.config, tables, LEARNING_RATE, scenario.l2)
    weights, seen, gradients, verdicts = [copies(tables)], [], [], []

    def plan(step: int, group: dist.ProcessGroup | None = None) -> Plan:
        return tables.plan(scenario.uses(step, world.rank), group)

    with ExitStack() as stack:
        take: Callable[[int], Plan] = plan
        if scenario.planning == "first":
            take = [plan(step) for step in range(len(scenario.steps))].__getitem__
        elif scenario.planning == "prefetch":
            take = stack.enter_context(Prefetcher(plan, world, last_step=len(scenario.steps) - 1)).take
        for step in range(len(scenario.steps)):
            lookup = tables.fetch(take(step))
            seen.append([{name: rows.detach().clone() for name, rows in part.items()} for part in lookup.rows])
            for number, part in enumerate(lookup.rows):
                if (loss := scenario.loss(part, step, world.rank, number)).requires_grad:
                    loss.backward()
            found = lookup.gradients(scenario.scale)
            gradients.append(by_id(tables, found))
            verdicts.append(judge([], found, tables, scenario.max_norm, world))
            optimizer.step(found, verdicts[-1], rate_factor(step))
            weights.append(copies(tables))
    return Outcome(
        ids={name: shard.ids() for name, shard in tables.shards.items()},
        weights=weights,
        rows=seen,
        gradients=gradients,
        norms=[verdict.norm.item() for verdict in verdicts],
        ok=[bool(verdict.ok) for verdict in verdicts],
        state={name: {k: v.clone() for k, v in state.items()} for name, state in optimizer.row_state.items()},
        bytes={kind: (cost.bytes, cost.between_nodes) for kind, cost in tables.traffic.items()},
        requests=tables.requests,
    )


def rate_factor(step: int) -> float:
    return 1.0 / (1 + step)


def copies(tables: ShardedTables) -> dict[str, Tensor]:
    return {name: shard.weight.clone() for name, shard in tables.shards.items()}


def by_id(tables: ShardedTables, gradients: list[RowGradients]) -> dict[str, tuple[Tensor, Tensor]]:
    """Gradients of groups -> row ids and values by table."""
    found = {}
    for group, part in zip(tables.groups, gradients, strict=True):
        for name, member in group.members.items():
            inside = (part.rows >= member.offset) & (part.rows < member.offset + member.block)
            found[name] = tables.shards[name].ids()[part.rows[inside] - member.offset], part.values[inside]
    return found


# ---- the oracle's side: what the ranks must have seen


def check(scenario: Scenario, outcomes: list[Outcome]) -> None:
    """Every outcome of every rank, step by step."""
    plain = {s.name: PlainTable(initial_weight(SEED, s.name, s.rows, s.dim)) for s in scenario.tables}
    optimizers = {
        name: PLAIN_OPTIMIZERS[scenario.config.optimizer](table, scenario.l2, scenario.config.weight_decay)
        for name, table in plain.items()
    }
    weights = [whole(scenario, outcomes, lambda o, n, at=at: o.weights[at][n]) for at in range(len(scenario.steps) + 1)]
    for spec in scenario.tables:
        assert torch.equal(weights[0][spec.name].double(), plain[spec.name].weight), f"initial rows of {spec.name}"
    for step in range(len(scenario.steps)):
        check_rows(scenario, outcomes, step, weights[step])
        touched = asked(scenario, step)
        gradients = whole_gradients(scenario, outcomes, step, touched)
        ok = check_gradients(scenario, outcomes, step, plain, gradients)
        for name, table in plain.items():
            changed = (weights[step + 1][name] != weights[step][name]).any(1).nonzero().flatten().tolist()
            if not ok:
                assert not changed, f"step {step}, {name}: changed in a skipped step"
            elif scenario.config.optimizer != "exact":
                assert touched[name].issuperset(changed), f"step {step}, {name}: rows changed that nobody asked for"
            assert table.weight.grad is None
        if not ok:
            continue
        norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt().item()
        for outcome in outcomes:
            assert outcome.norms[step] == pytest.approx(norm, rel=TOLERANCE)
        factor = 1.0 if scenario.max_norm is None else scenario.max_norm / max(norm, scenario.max_norm)
        for name, optimizer in optimizers.items():
            optimizer.step(gradients[name], touched[name], LEARNING_RATE * rate_factor(step), factor)
            near(weights[step + 1][name], plain[name].weight, f"step {step}, rows of {name}")
    for spec in scenario.tables:
        state = optimizers[spec.name].state
        assert state.keys() == outcomes[0].state[spec.name].keys()
        for key, expected in state.items():
            found = whole(scenario, outcomes, lambda o, n, key=key: o.state[n][key], [spec])[spec.name]
            near(found, torch.from_numpy(expected), f"{key} of {spec.name}")
    check_traffic(scenario, outcomes)


def check_rows(scenario: Scenario, outcomes: list[Outcome], step: int, weights: Rows) -> None:
    for rank, outcome in enumerate(outcomes):
        wanted = scenario.uses(step, rank)
        assert len(outcome.rows[step]) == len(wanted), f"step {step}, rank {rank}: micro-batches"
        specs = {spec.name: spec for spec in scenario.tables}
        for uses, rows in zip(wanted, outcome.rows[step], strict=True):
            assert uses.keys() == rows.keys()
            for name, (table, ids) in uses.items():
                held = PlainTable(weights[table]).rows(ids).float()
                if not scenario.replicated(specs[table]):
                    travelled = ~torch.isin(ids, outcome.ids[table])
                    held[travelled] = held[travelled].to(getattr(torch, scenario.config.row_format)).float()
                assert torch.equal(rows[name], held), f"step {step}, rank {rank}: rows of {name}"


def check_gradients(
    scenario: Scenario, outcomes: list[Outcome], step: int, plain: dict[str, PlainTable], found: Rows
) -> bool:
    """Compares the gradients found if all are finite; the answer is whether they are, as the ranks must say."""
    uses: list[tuple[str, Tensor, Tensor]] = []
    loss = torch.zeros(())
    for rank in range(scenario.world_size):
        for part, wanted in enumerate(scenario.uses(step, rank)):
            rows = {name: plain[table].rows(ids) for name, (table, ids) in wanted.items()}
            for name, values in rows.items():
                values.retain_grad()
                uses.append((*wanted[name], values))
            loss = loss + scenario.loss(rows, step, rank, part)
    if loss.requires_grad:
        (loss * scenario.scale).backward()
    expected = {name: table.take_gradient() for name, table in plain.items()}
    absolute = {name: torch.zeros_like(gradient) for name, gradient in expected.items()}
    for name, ids, values in uses:
        if values.grad is not None:
            real = (ids != NO_ROW).flatten()
            contributions = values.grad.view(-1, values.shape[-1])[real].abs()
            absolute[name].index_add_(0, ids.flatten()[real], contributions)
    ok = all(bool(gradient.isfinite().all()) for gradient in expected.values())
    assert [outcome.ok[step] for outcome in outcomes] == [ok] * scenario.world_size, f"step {step}: verdict"
    if not ok:
        return False
    wire = scenario.config.gradient_format
    for spec in scenario.tables:
        bound = TOLERANCE * absolute[spec.name].max() + torch.zeros_like(absolute[spec.name])
        if scenario.world_size > 1 and not scenario.replicated(spec):
            roundings = 2 if scenario.two_levels else 1
            bound += roundings * ROUNDOFF[wire] * absolute[spec.name]
            bound += roundings * scenario.world_size * FLOAT16_SMALLEST * (wire == "float16")
        error = (found[spec.name] - expected[spec.name]).abs()
        assert (error <= bound).all(), f"step {step}, gradient of {spec.name}: off by {(error - bound).max()} more"
    return True


def check_traffic(scenario: Scenario, outcomes: list[Outcome]) -> None:
    """Each distinct row that a rank wants of another is asked for once, sent once, and its gradient sent once."""
    size, local = scenario.world_size, scenario.local_size
    sent = [{kind: [0, 0] for kind in ("ids", "rows", "gradients", "replicated")} for _ in range(size)]
    requests = [dict.fromkeys((spec.name for spec in scenario.tables), 0) for _ in range(size)]
    held = [{name: set(ids.tolist()) for name, ids in outcome.ids.items()} for outcome in outcomes]

    def send(kind: str, rank: int, to: int, num_bytes: int) -> None:
        sent[rank][kind][0] += num_bytes * (to != rank)
        sent[rank][kind][1] += num_bytes * (to // local != rank // local)

    for step in range(len(scenario.steps)):
        wanted = [asked(scenario, step, [rank]) for rank in range(size)]
        unions: dict[int, int] = {}  # distinct replicated rows by dim
        for spec in scenario.tables:
            of_table = [rows[spec.name] for rows in wanted]
            if size == 1 or scenario.replicated(spec):
                for rank, rows in enumerate(of_table):
                    requests[rank][spec.name] += len(rows)
                unions[spec.dim] = unions.get(spec.dim, 0) + len(set().union(*of_table))
                continue
            for owner in range(size):
                for rank, of, num, final in questions(scenario, of_table, owner, held[owner][spec.name]):
                    requests[of][spec.name] += num * final
                    send("ids", rank, of, 4 * num)
                    send("rows", of, rank, BYTES[scenario.config.row_format] * spec.dim * num)
                    send("gradients", rank, of, BYTES[scenario.config.gradient_format] * spec.dim * num)
        for dim, num in unions.items():
            for rank in range(size):
                if not scenario.two_levels:  # a ring's all-reduce
                    sent[rank]["replicated"][0] += 2 * 4 * dim * num * (size - 1) // size
                    continue
                node, place = divmod(rank, local)
                far = sent_of_sum(sizes_of_parts(num, local)[place], size // local, node)
                sent[rank]["replicated"][0] += 4 * dim * (sent_of_sum(num, local, place) + far)
                sent[rank]["replicated"][1] += 4 * dim * far
    for rank, outcome in enumerate(outcomes):
        assert {kind: list(outcome.bytes.get(kind, (0, 0))) for kind in sent[rank]} == sent[rank], f"rank {rank}"
        assert outcome.requests == requests[rank], f"rank {rank}"
        assert size > 1 or not any(map(any, outcome.bytes.values()))


def sizes_of_parts(rows: int, peers: int) -> list[int]:
    return [len(part) for part in torch.empty(rows).tensor_split(peers)]


def sent_of_sum(rows: int, peers: int, place: int) -> int:
    """Rows that one of some peers sends, where each sums a part and gives it to the others."""
    part = sizes_of_parts(rows, peers)[place]
    return rows - part + (peers - 1) * part


def questions(
    scenario: Scenario, wanted: list[set[int]], owner: int, held: set[int]
) -> Iterator[tuple[int, int, int, bool]]:
    """(asking rank, asked rank, number of rows, whether as the owner): for the owner's rows that ranks want."""
    if not scenario.two_levels:
        for rank, rows in enumerate(wanted):
            yield rank, owner, len(rows & held), True
        return
    for first in range(0, scenario.world_size, scenario.local_size):
        node = range(first, first + scenario.local_size)
        agent = node[owner % scenario.local_size]
        for rank in node:
            yield rank, agent, len(wanted[rank] & held), False
        yield agent, owner, len(set().union(*(wanted[rank] for rank in node)) & held), True


def asked(scenario: Scenario, step: int, ranks: list[int] | None = None) -> dict[str, set[int]]:
    """Distinct row ids by table."""
    found: dict[str, set[int]] = {spec.name: set() for spec in scenario.tables}
    for rank in range(scenario.world_size) if ranks is None else ranks:
        for uses in scenario.uses(step, rank):
            for table, ids in uses.values():
                found[table].update(ids[ids != NO_ROW].tolist())
    return found


def whole(
    scenario: Scenario,
    outcomes: list[Outcome],
    pick: Callable[[Outcome, str], Tensor],
    specs: list[TableSpec] | None = None,
) -> dict[str, Tensor]:
    """Each table put together from all ranks' rows, in the order of its ids; replicas must be the same."""
    tables = {}
    for spec in scenario.tables if specs is None else specs:
        ids = [outcome.ids[spec.name] for outcome in outcomes]
        values = [pick(outcome, spec.name) for outcome in outcomes]
        if scenario.replicated(spec):
            assert all(torch.equal(i, ids[0]) and torch.equal(v, values[0]) for i, v in zip(ids, values, strict=True))
            ids, values = ids[:1], values[:1]
        order = torch.cat(ids).argsort()
        assert torch.equal(torch.cat(ids)[order], torch.arange(spec.rows)), f"{spec.name}: each row is held once"
        tables[spec.name] = torch.cat(values)[order]
    return tables


def whole_gradients(scenario: Scenario, outcomes: list[Outcome], step: int, touched: dict[str, set[int]]) -> Rows:
    """What the ranks will move their rows by, float64 [rows, dim]; these rows must be `touched`, each once."""
    tables = {}
    for spec in scenario.tables:
        found = [outcome.gradients[step][spec.name] for outcome in outcomes]
        if scenario.replicated(spec):
            for other in found:
                torch.testing.assert_close(other, found[0], rtol=0, atol=0, equal_nan=True)
            found = found[:1]
        ids = torch.cat([ids for ids, _ in found])
        assert sorted(ids.tolist()) == sorted(touched[spec.name]), f"step {step}: rows of {spec.name} with a gradient"
        tables[spec.name] = torch.zeros(spec.rows, spec.dim, dtype=torch.float64)
        tables[spec.name][ids] = torch.cat([values for _, values in found]).double()
    return tables


def near(found: Tensor, expected: Tensor, what: str) -> None:
    error, largest = (found.double() - expected).abs().max().item(), expected.abs().max().item()
    assert error <= TOLERANCE * largest, f"{what}: off by {error:.2e}, {error / largest:.1e} of the largest"


def identical(one: list[Outcome], other: list[Outcome]) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(vars(a), vars(b), rtol=0, atol=0, equal_nan=True)


# ---- drawing scenarios

SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (4,), (2, 3), (0, 5), (7, 1, 2), (9, 6), (13, 11)]
KINDS = ["padding", "few", "edges", "any", "any"]
# Drawn from a list, not built, so that most of a table's uses are not the simplest ones. None: not asked for.
ASKS: list[Ask | None] = [None, None, None]
ASKS += [Ask(shape, kind, seed) for shape in SHAPES for kind in KINDS for seed in range(4)]
ASKS += [Ask(shape, "any", 5, used=False) for shape in SHAPES]
BESIDE = [Ask(shape, kind, 9) for shape in SHAPES if shape for kind in ("few", "any")]
"""Of the shapes that others have too: uses with as many samples lie side by side."""
ROWS = st.one_of(st.integers(1, 6), st.integers(7, 300), st.integers(900, 3000))


@st.composite
def scenarios(draw: st.DrawFn, world_size: int, wire: bool = False, **fixed: Any) -> Scenario:
    dims = draw(st.lists(st.sampled_from([1, 2, 5, 8, 12]), min_size=1, max_size=2))
    number = draw(st.sampled_from([1, 2, 3, 3, 4, 4]))
    tables = [TableSpec(f"t{n}", draw(ROWS), draw(st.sampled_from(dims))) for n in range(number)]
    optimizer = fixed.get("optimizer") or draw(st.sampled_from(OPTIMIZERS))
    config = TablesConfig(
        optimizer=optimizer,
        weight_decay=draw(st.sampled_from([0.0, 0.1])) if optimizer == "lazy_adam" else 0.0,
        replicate_below=draw(st.sampled_from([0, 250, EVERYTHING])) if not wire else draw(st.sampled_from([0, 4])),
        row_format=draw(st.sampled_from(list(ROUNDOFF))) if wire else "float32",
        gradient_format=draw(st.sampled_from(list(ROUNDOFF))) if wire else "float32",
        exchange=draw(st.sampled_from(["two_level", "flat"])) if world_size == 4 else "flat",
    )
    uses = [name for spec in tables for name in (spec.name, f"{spec.name} again", f"{spec.name} beside")]
    again = [None, None, *ASKS]
    asks = st.tuples(*[st.sampled_from(ASKS), st.sampled_from(again), st.none() | st.sampled_from(BESIDE)] * number)
    steps = [
        [
            [
                {name: ask for name, ask in zip(uses, draw(asks), strict=True) if ask is not None}
                for _ in range(draw(st.sampled_from([1, 2, 3])))
            ]
            for _ in range(world_size)
        ]
        for _ in range(draw(st.sampled_from([1, 2, 3, 3])))
    ]
    poisoned = st.none() | st.tuples(st.integers(0, len(steps) - 1), st.integers(0, world_size - 1))
    return Scenario(
        world_size=world_size,
        tables=tuple(tables),
        config=config,
        steps=steps,
        local_size=2 if world_size == 4 else 1,
        l2=0.0 if wire else draw(st.sampled_from([0.0, 1e-3])),
        scale=draw(st.sampled_from([1.0, 0.37])),
        max_norm=draw(st.sampled_from([None, 0.02 if wire else 20.0])),
        planning=fixed.get("planning") or draw(st.sampled_from(["step", "first", "prefetch"])),
        poisoned=draw(poisoned),
        linear=wire,
    )


def examples(number: int) -> settings:
    health = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(derandomize=True, max_examples=number, deadline=None, suppress_health_check=health)


@pytest.fixture(scope="module")
def ranks() -> Iterator[dict[int, Ranks]]:
    """Ranks that stay for all examples, by their number."""
    with ExitStack() as stack:
        yield {size: stack.enter_context(Ranks(size)) for size in (1, 2, 3, 4)}


WORLD_SIZES = pytest.mark.parametrize("size", [1, 2, 3, 4])


@WORLD_SIZES
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_equals_whole_tables(ranks: dict[int, Ranks], size: int, optimizer: str) -> None:
    @examples(8)
    @given(scenario=scenarios(size, optimizer=optimizer))
    def holds(scenario: Scenario) -> None:
        check(scenario, ranks[size].run(train, scenario))

    holds()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_training_with_short_wire_formats(ranks: dict[int, Ranks], size: int) -> None:
    @examples(12)
    @given(scenario=scenarios(size, wire=True))
    def holds(scenario: Scenario) -> None:
        check(scenario, ranks[size].run(train, scenario))

    holds()


@pytest.mark.parametrize("size", [1, 4])
def test_runs_are_identical_however_they_are_planned(ranks: dict[int, Ranks], size: int) -> None:
    """Two runs, one with plans made in advance and one with a prefetching thread, bit by bit."""

    @examples(6)
    @given(scenario=scenarios(size, planning="step"))
    def holds(scenario: Scenario) -> None:
        first = ranks[size].run(train, scenario)
        for planning in ("step", "first", "prefetch"):
            identical(ranks[size].run(train, replace(scenario, planning=planning)), first)

    holds()


def split(scenario: Scenario, local_sizes: list[int]) -> str:
    """What a rank is told where nodes have so many ranks."""
    world = init_world(cpu=True)
    places = [(number, of) for of in local_sizes for number in range(of)]
    number, of = places[world.rank]
    try:
        train_in(replace(world, local_rank=number, local_size=of), scenario)
    except UserError as error:
        return str(error)
    return "done"


def test_nodes_that_are_not_alike_have_no_two_levels(ranks: dict[int, Ranks]) -> None:
    config = TablesConfig(exchange="two_level", replicate_below=0, optimizer="sgd")
    scenario = Scenario(4, (TableSpec("t", 9, 3),), config, [[[{"t": Ask((4,), "any", rank)}] for rank in range(4)]])
    for sizes in ([3, 1], [1, 2, 1], [3, 3]):
        for told in ranks[4].run(split, scenario, sizes):
            assert told.startswith("tables.exchange: two_level needs as many ranks on each node, numbered node by node")
            assert told.endswith("start as many on each, or use flat")
    for sizes in ([4], [1, 1, 1, 1], [2, 2]):
        assert ranks[4].run(split, scenario, sizes) == ["done"] * 4


def test_one_rank_needs_no_process_group() -> None:
    world = World(rank=0, size=1, local_rank=0, local_size=1, device=torch.device("cpu"))

    @examples(8)
    @given(scenario=scenarios(1))
    def holds(scenario: Scenario) -> None:
        check(scenario, [train_in(world, scenario)])

    holds()


def test_a_float16_gradient_that_overflows_is_judged_not_finite(ranks: dict[int, Ranks]) -> None:
    """4095 uses of a row sum up to more than the 16 that float16 reaches here; bfloat16 and float32 do."""
    part = {"t": Ask((4095,), "few")}
    for wire, ok in (("float16", False), ("bfloat16", True), ("float32", True)):
        config = TablesConfig(optimizer="sgd", replicate_below=0, gradient_format=wire)
        scenario = Scenario(2, (TableSpec("t", 1, 3),), config, [[[part], [part]]])
        outcomes = ranks[2].run(train, replace(scenario, scale=100.0))
        assert [outcome.ok for outcome in outcomes] == [[ok], [ok]]


# ---- where rows are


SIZES = [*range(1, 1100), *range(2040, 2060), *range(3065, 3080), 4096, 10_007, 99_999, 100_000, 1 << 17]


def test_row_order_is_a_bijection() -> None:
    for rows in SIZES:
        order, ids = RowOrder(rows), np.arange(rows)
        positions = order.positions(ids)
        assert np.array_equal(np.sort(positions), ids), rows
        assert np.array_equal(order.ids(positions), ids), rows
        assert np.array_equal(order.positions(order.ids(ids)), ids), rows


def test_a_column_of_ids_is_stored_as_one_run() -> None:
    order = RowOrder(5000)
    for column in range(1024):
        positions = order.positions(np.arange(column, 5000, 1024))
        assert np.array_equal(positions, positions[0] + np.arange(len(positions)))


@pytest.mark.parametrize("rows", [4096, 5000, 10_007, 1_000_003])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8])
def test_neighbours_visit_the_ranks_evenly(rows: int, size: int) -> None:
    """Of the first n ids a rank has n/W, give or take 2 (log2(n) / 3 + 1): twice van der Corput's discrepancy, as a
    block of positions has two ends. Of the first 4 W it has 4, give or take 2.

    Columns are of two lengths, so that shares of positions are shares of columns but for 1024 / rows: one more row in
    n at most, with n up to the 1024 columns and a table of at least 4096 rows, is what `1 + ` allows for.
    """
    rank = RowOrder(rows).positions(np.arange(1024)) // -(-rows // size)
    held = np.stack([np.cumsum(rank == r) for r in range(size)])  # [W, n]
    n = np.arange(1, 1025)
    assert (np.abs(held - n / size) <= 1 + 2 * (np.log2(n) / 3 + 1)).all()
    assert np.abs(held[:, 4 * size - 1] - 4).max() <= 2


def placed(specs: list[TableSpec], replicate_below: int) -> dict[str, tuple[int, Tensor, Tensor]]:
    world = init_world(cpu=True)
    tables = ShardedTables(specs, SEED, world, TablesConfig(replicate_below=replicate_below))
    return {name: (shard.start, shard.ids(), shard.weight) for name, shard in tables.shards.items()}


@WORLD_SIZES
def test_initial_rows_depend_on_neither_the_ranks_nor_the_placement(ranks: dict[int, Ranks], size: int) -> None:
    """The last table is initialised in several pieces on each rank, and so are those beside it in its tensor."""
    specs = [TableSpec("a", 23, 8), TableSpec("b", 3, 5), TableSpec("c", 1, 8), TableSpec("d", 2500, 1501)]
    expected = {spec.name: initial_weight(SEED, spec.name, spec.rows, spec.dim) for spec in specs}
    for replicate_below in (0, 20, EVERYTHING):
        for chosen in (specs, specs[1:]):
            outcomes = ranks[size].run(placed, chosen, replicate_below)
            for spec in chosen:
                replicated = size > 1 and spec.rows < replicate_below
                block = -(-spec.rows // (1 if replicated else size))
                for rank, outcome in enumerate(outcomes):
                    start, ids, weight = outcome[spec.name]
                    assert start == (0 if replicated else min(rank * block, spec.rows))
                    assert len(ids) == len(weight) == min(start + block, spec.rows) - start
                    assert torch.equal(weight, expected[spec.name][ids])


# ---- mistakes: every rank raises the same, at once, and the ranks can go on

MISTAKEN = [TableSpec("item", 23, 4), TableSpec("user", 5, 4), TableSpec("city", 2, 3)]
MISTAKES: dict[str, tuple[Uses, str]] = {
    kind: ({table: (table, ids)}, message)
    for kind, table, ids, message in (
        ("too large", "user", torch.tensor([[0, 5]]), "IndexError: rank 1: table user: id 5 is outside its 5 rows"),
        ("negative", "item", torch.tensor([-1, -2]), "IndexError: rank 1: table item: id -2 is outside its 23 rows"),
        ("replicated", "city", torch.tensor([2]), "IndexError: rank 1: table city: id 2 is outside its 2 rows"),
        ("int32", "user", torch.tensor([1]).int(), "TypeError: rank 1: table user: ids must be int64, not int32"),
        ("float", "item", torch.tensor([0.5]), "TypeError: rank 1: table item: ids must be int64, not float32"),
        ("unknown", "shop", torch.tensor([0]), "KeyError: rank 1: no table shop; there are item, user, city"),
    )
}


def plan_with_mistakes(mistakes: dict[int, Uses], exchange: Any = "flat") -> list[str]:
    """On nodes of two ranks."""
    world = init_world(cpu=True)
    world = replace(world, local_rank=world.rank % 2, local_size=2)
    tables = ShardedTables(MISTAKEN, 0, world, TablesConfig(replicate_below=4, exchange=exchange))
    good = {spec.name: (spec.name, torch.tensor([0, NO_ROW])) for spec in MISTAKEN}
    errors = []
    for parts in ([good, good | mistakes.get(world.rank, {})], [mistakes.get(world.rank, good)]):
        try:
            tables.plan(parts)
        except (IndexError, KeyError, TypeError) as error:
            errors.append(f"{type(error).__name__}: {error.args[0]}")
        assert tables.lookup(good).rows[0]["item"].shape == (2, 4)  # the ranks still agree on what comes next
    return errors


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_ids_on_one_rank_raise_on_every_rank(ranks: dict[int, Ranks], mistake: str) -> None:
    ids, message = MISTAKES[mistake]
    assert ranks[3].run(plan_with_mistakes, {1: ids}, timeout=10) == [[message, message]] * 3
    assert ranks[4].run(plan_with_mistakes, {1: ids}, "two_level", timeout=10) == [[message, message]] * 4
    [alone] = ranks[1].run(plan_with_mistakes, {0: ids}, timeout=10)
    assert alone == [message.replace("rank 1: ", "")] * 2


def test_the_first_of_several_ranks_with_bad_ids_is_named(ranks: dict[int, Ranks]) -> None:
    mistakes = {2: MISTAKES["int32"][0], 1: MISTAKES["too large"][0]}
    message = MISTAKES["too large"][1]
    assert ranks[3].run(plan_with_mistakes, mistakes, timeout=10) == [[message, message]] * 3


def create(specs: list[list[TableSpec]], configs: list[TablesConfig], size: int) -> str:
    world = init_world(cpu=True)
    rank = world.rank
    try:
        ShardedTables(specs[rank % len(specs)], 0, replace(world, size=size), configs[rank % len(configs)])
    except ValueError as error:
        return str(error)
    return "no error"


USER = [TableSpec("user", 5, 4)]
DISAGREEMENTS = [
    ([USER, USER, [TableSpec("user", 6, 4)]], [TablesConfig()], 2, "6"),
    ([USER, [TableSpec("user", 5, 3)], USER], [TablesConfig()], 1, "3"),
    ([USER, [TableSpec("item", 5, 4)], USER], [TablesConfig()], 1, "item"),
    ([USER, [*USER, *MISTAKEN[2:]], USER], [TablesConfig()], 1, "city"),
    ([USER], [TablesConfig(), TablesConfig(), TablesConfig(replicate_below=7)], 2, '"replicate_below":7'),
    ([USER], [TablesConfig(), TablesConfig(row_format="float16"), TablesConfig()], 1, '"row_format":"float16"'),
]


@pytest.mark.parametrize(("specs", "configs", "odd", "detail"), DISAGREEMENTS)
def test_ranks_that_disagree_are_told(
    ranks: dict[int, Ranks], specs: list[list[TableSpec]], configs: list[TablesConfig], odd: int, detail: str
) -> None:
    errors = ranks[3].run(create, specs, configs, 3, timeout=10)
    for error in errors:
        assert error.startswith(f"rank {odd} has other tables or settings than rank 0: ")
        assert "user" in error
        assert detail in error


@pytest.mark.parametrize("size", [2, 4])
def test_a_world_of_another_size_than_the_process_group_is_refused(ranks: dict[int, Ranks], size: int) -> None:
    errors = ranks[3].run(create, [USER], [TablesConfig()], size, timeout=10)
    assert errors == [f"the process group has 3 ranks, the world {size}"] * 3


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_lazy_adam_has_weight_decay(optimizer: Any) -> None:
    assert TablesConfig(optimizer=optimizer, weight_decay=0.0).weight_decay == 0.0
    if optimizer == "lazy_adam":
        assert TablesConfig(optimizer=optimizer, weight_decay=0.1).weight_decay == 0.1
    else:
        with pytest.raises(ValidationError, match=f"weight_decay is served by .*lazy_adam only, not by {optimizer}"):
            TablesConfig(optimizer=optimizer, weight_decay=0.1)
