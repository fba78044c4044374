"""One training step: fetch the rows of a prepared batch, forward, backward, update. It never waits for a GPU."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eupmim_dist.data.batch import Batch
from eupmim_dist.data.blocks import block_range
from eupmim_dist.data.counter import stream_key
from eupmim_dist.optim.schedule import rate_factor
from eupmim_dist.parallel.exchange import Lanes
from eupmim_dist.parallel.plan import Plan
from eupmim_dist.parallel.verdict import judge
from eupmim_dist.train.state import Outcome, Run


@dataclass(frozen=True)
class Prepared:
    """What a step needs and can be had before it: this rank's samples, in parts, and the plan of their look-up."""

    parts: list[Batch]
    plan: Plan


def prepare_step(run: Run, step: int, lanes: Lanes | None = None) -> Prepared:
    """Samples the batch of `step` (from 0) and plans its look-up, over `lanes`; collective."""
    batch = run.sampler.sample(step)
    num_parts = run.config.train.accumulation
    parts = [batch.part(*block_range(len(batch.user), part, num_parts)) for part in range(num_parts)]
    plan = run.tables.plan([run.model.ids(part) for part in parts], lanes, notice=run.stop_requested)
    return Prepared([part.pinned() for part in parts] if run.world.device.type == "cuda" else parts, plan)


def train_step(run: Run, step: int, prepared: Prepared) -> Outcome:
    """Trains on the global batch of `step`."""
    # Dropout is a function of (seed, step, rank), so resuming needs no generator state.
    torch.manual_seed(stream_key(run.config.seed, "dropout", step, run.world.rank))
    lookup = run.tables.fetch(prepared.plan)
    shares: dict[str, Tensor] = {}
    for number, (batch, rows) in enumerate(zip(prepared.parts, lookup.rows, strict=True)):
        with run.dense.part(last=number == len(prepared.parts) - 1):
            found: dict[str, Tensor] = run.dense.module(rows, batch.to(run.world.device))
            run.dense.backward(torch.stack(list(found.values())).sum())
        for name, share in found.items():
            shares[name] = shares[name] + share.detach() if name in shares else share.detach()
    gradients = run.dense.row_gradients(lookup)
    dense, max_norm = run.dense, run.config.train.clip_norm
    verdict = judge(dense.gradients(), gradients, run.tables, max_norm, run.world, dense.partitioned)
    factor = rate_factor(run.config.train, step)
    dense.step(factor * run.config.train.learning_rate, verdict)
    run.table_optimizer.step(gradients, verdict, factor)
    return Outcome(shares, verdict)


@torch.no_grad()
def l2_term(run: Run) -> tuple[Tensor, Tensor]:
    """(the replicated part, this rank's shards' part) of l2/2 times the sum of squares of every parameter.

    The optimizers add its gradient (weight decay as Adam's L2); its value is only needed for the log. Rows count
    where the optimizer moves all of them: the lazy ones add l2 to touched rows alone, which no term of a loss does.
    """
    factor = 0.5 * run.config.train.l2
    common = torch.zeros((), device=run.world.device)
    own = torch.zeros_like(common)
    if not factor:
        return common, own
    common += torch.stack([p.square().sum() for p in run.model.parameters()]).sum()
    for group in run.tables.groups if run.config.tables.optimizer == "exact" else []:
        total = common if group.replicated else own
        total += torch.linalg.vector_norm(group.weight).square().to(total.device)
    return factor * common, factor * own
