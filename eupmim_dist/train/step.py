"""One training step: fetch the rows of a prepared batch, forward, backward, update. It never waits for a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from eupmim_dist.data.batch import Batch
from eupmim_dist.data.counter import stream_key
from eupmim_dist.objectives.interface import Candidates
from eupmim_dist.optim.schedule import rate_factor
from eupmim_dist.parallel.exchange import Connections
from eupmim_dist.parallel.plan import Plan, pinned
from eupmim_dist.parallel.propagation import LeftOut
from eupmim_dist.parallel.verdict import judge
from eupmim_dist.train.compiled import begin_step
from eupmim_dist.train.state import Outcome, Run


@dataclass(frozen=True)
class Prepared:
    """What a step needs and can be had before it: this rank's micro-batches and the plan of their look-up."""

    micro_batches: list[tuple[Batch, Candidates]]
    plan: Plan
    left_out: LeftOut | None = None
    """Edges that are no part of the propagation, of a model that has one."""


def prepare_step(run: Run, step: int, connections: Connections | None = None) -> Prepared:
    """Samples the batch of `step` (from 0) and plans its look-up, over `connections`; collective."""
    batch, number = run.task.sample(step), run.config.train.accumulation
    micro_batches = []
    for index in range(number):
        micro_batch = batch.micro_batch(index, number)
        micro_batches.append((micro_batch, run.objective.draw(micro_batch, step)))
    uses = [run.model.uses(micro_batch) | candidates.uses() for micro_batch, candidates in micro_batches]
    plan = run.tables.plan(uses, connections, stop=run.stop_requested or run.end_requested)
    propagation = run.model.propagation()
    masked = propagation is not None and propagation.mask_targets
    left_out = run.tables.left_out(run.task.predicted(step)) if masked else None
    if run.world.device.type == "cuda":
        micro_batches = [(micro_batch.pinned(), candidates.pinned()) for micro_batch, candidates in micro_batches]
        left_out = pinned(left_out)
    return Prepared(micro_batches, plan, left_out)


PHASES = ("fetch", "forward", "backward", "row gradients", "verdict", "update")
"""Of a step, in order; a profile of torch's shows them."""


def train_step(run: Run, step: int, prepared: Prepared) -> Outcome:
    """Trains on the global batch of `step`."""
    # Dropout is a function of (seed, step, rank), so resuming needs no generator state.
    torch.manual_seed(stream_key(run.config.seed, "dropout", step, run.world.rank))
    device, dense = run.world.device, run.dense
    begin_step(run.config.train, run.world)
    with record_function("fetch"):
        lookup = run.tables.fetch(prepared.plan, prepared.left_out)
        catalogue = run.tables.catalogue() if run.objective.whole_catalogue else None
    shares: dict[str, Tensor] = {}
    for number, ((batch, candidates), rows) in enumerate(zip(prepared.micro_batches, lookup.rows, strict=True)):
        with dense.micro_batch(last=number == len(prepared.micro_batches) - 1):
            with record_function("forward"):
                found: dict[str, Tensor] = dense.module(rows, batch.to(device), candidates.to(device), catalogue)
                parts = torch.stack(list(found.values()))
            with record_function("backward"):
                dense.backward(parts.sum())
        for name, share in zip(found, parts.detach(), strict=True):
            shares[name] = shares[name] + share if name in shares else share
    with record_function("row gradients"):
        gradients = dense.row_gradients(lookup, catalogue)
    with record_function("verdict"):
        max_norm = run.config.train.clip_norm
        verdict = judge(dense.gradients(), gradients, run.tables, max_norm, run.world, dense.partitioned)
    with record_function("update"):
        factor = rate_factor(run.config.train, step)
        dense.step(factor * run.config.train.learning_rate, verdict)
        run.table_optimizer.step(gradients, verdict, factor)
    return Outcome(shares, verdict)
