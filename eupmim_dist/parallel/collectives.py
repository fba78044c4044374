"""Collectives over all ranks, also with one rank, where they do nothing; some pass gradients back.

Every rank must take part. W ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eupmim_dist.parallel.world import World


def sum_(tensor: Tensor, world: World) -> Tensor:
    """Sums over the ranks in place; returns the tensor."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def all_gather(tensor: Tensor, world: World) -> Tensor:
    """[n, ...] of every rank -> [W * n, ...]; n is the same everywhere."""
    if world.size == 1:
        return tensor
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world.size)]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def all_to_all(tensor: Tensor, world: World) -> Tensor:
    """[W * n, ...], n for each rank -> [W * n, ...], n from each rank."""
    if world.size == 1:
        return tensor
    out = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    dist.all_to_all_single(out, tensor.contiguous())
    return out


def barrier(world: World) -> None:
    """Waits for all ranks and, on a GPU, for what it has been given to do."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    if world.size > 1:
        dist.barrier()


def gather(tensor: Tensor, world: World) -> Tensor:
    """As `all_gather`. A rank's part gets the gradients that all ranks have for it, summed."""
    gathered: Tensor = _Gather.apply(tensor, world)
    return gathered


def total(tensor: Tensor, world: World) -> Tensor:
    """The sum over the ranks. Each rank's summand gets the gradients that all ranks have for the sum, summed."""
    summed: Tensor = _Total.apply(tensor, world)
    return summed


def logsumexp(tensor: Tensor, world: World) -> Tensor:
    """The log of the sum of exponentials over the ranks, elementwise; gradients as those of `total`.

    Somewhere each element must be finite; elsewhere it may be minus infinity.
    """
    found: Tensor = _LogSumExp.apply(tensor, world)
    return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.world, ctx.number = world, len(tensor)
        gathered = all_gather(tensor, world)
        return gathered.view_as(gathered)  # not the input itself where there is one rank

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # A reduce-scatter, which gloo has no fast one of: each rank sends the others their part.
        [gradient] = gradients
        parts = all_to_all(gradient, ctx.world).view(ctx.world.size, ctx.number, *gradient.shape[1:])
        return parts.sum(0), None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.world = world
        return sum_(tensor.clone(memory_format=torch.contiguous_format), world)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return sum_(gradients[0].clone(memory_format=torch.contiguous_format), ctx.world), None


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.world, tensor = world, tensor.contiguous()
        largest = tensor.clone()
        if world.size > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        found = sum_((tensor - largest).exp(), world).log_().add_(largest)
        ctx.save_for_backward(tensor, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        tensor, found = ctx.saved_tensors
        gradient = sum_(gradients[0].clone(memory_format=torch.contiguous_format), ctx.world)
        return gradient * (tensor - found).exp(), None
