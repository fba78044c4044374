"""Whether a step's gradients may be used, and how far: one answer for all ranks, for dense and table gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from eupmim_dist.parallel.lookup import RowGradients
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import World


@dataclass(frozen=True)
class Verdict:
    """Scalars on the device, alike on every rank; reading them on the host would wait for the device."""

    norm: Tensor  # float32, of the global gradient, dense and rows together
    ok: Tensor  # bool, False if any gradient is not finite or the norm beyond 1e19: the step is to be skipped
    factor: Tensor | None  # float32, what gradients are to be multiplied by; None for 1


@torch.no_grad()
def judge(
    dense: Sequence[Tensor],
    rows: Sequence[RowGradients],
    tables: ShardedTables,
    max_norm: float | None,
    world: World,
    partitioned: bool = False,
) -> Verdict:
    """Judges the gradients of the global batch; collective.

    `dense` are averaged already and so alike on every rank, as are the rows of replicated tables; where they are
    `partitioned` (ZeRO), each rank gives its own part. The factor brings the norm down to `max_norm`, without the
    L2 terms, which the optimizers add.
    """
    whole = torch.nn.utils.get_total_norm(dense).square()
    common, own = (torch.zeros_like(whole), whole) if partitioned else (whole, torch.zeros_like(whole))
    for group, part in zip(tables.groups, rows, strict=True):
        total = common if group.replicated else own
        total += torch.linalg.vector_norm(part.values).square()
    if world.size > 1:
        dist.all_reduce(own)
    norm = (common + own).sqrt()
    factor = None if max_norm is None else max_norm / norm.clamp(min=max_norm)
    return Verdict(norm, norm.isfinite(), factor)
