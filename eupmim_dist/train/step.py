"""One training step: sample, look up, forward, backward, update. Only the look-up waits for the device."""

import torch
from torch import Tensor

from eupmim_dist.data.counter import stream_key
from eupmim_dist.train.state import Run


def train_step(run: Run, step: int) -> dict[str, Tensor]:
    """Trains on the global batch of `step` (from 0); this rank's share of each part of the loss, detached."""
    # Dropout is a function of (seed, step, rank), so resuming needs no generator state.
    torch.manual_seed(stream_key(run.config.seed, "dropout", step, run.world.rank))
    batch = run.sampler.sample(step).to(run.world.device)
    lookup = run.tables.lookup(run.model.ids(batch))
    parts: dict[str, Tensor] = run.dense.module(lookup.rows, batch)
    gradients = run.dense.backward(torch.stack(list(parts.values())).sum(), lookup)
    run.dense.step()
    run.table_optimizer.step(gradients)
    return {name: part.detach() for name, part in parts.items()}


@torch.no_grad()
def l2_term(run: Run) -> tuple[Tensor, Tensor]:
    """(the replicated part, this rank's shards' part) of l2/2 times the sum of squares of every parameter.

    The optimizers add its gradient (weight decay as Adam's L2); its value is only needed for the log.
    """
    factor = 0.5 * run.config.train.l2
    dense = torch.stack([p.square().sum() for p in run.model.parameters()]).sum()
    tables = torch.stack([shard.weight.square().sum() for shard in run.tables.shards.values()]).sum()
    return factor * dense, factor * tables
