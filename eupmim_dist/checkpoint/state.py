"""The tensors of a checkpoint by name, tables as DTensor views of the shards, so that any number of ranks loads them.

dense.<parameter>                      the replicated network
table.<table>                          an embedding table, [rows, dim], in its stored order
dense_optimizer.<moment>.<parameter>   Adam's moments of the network
table_optimizer.<table>.<state>        the table optimizer's state, one entry per row
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Shard as ShardPlacement

from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import Model
from eupmim_dist.optim.tables import TableOptimizer
from eupmim_dist.parallel.placement import Shard
from eupmim_dist.parallel.sharded import ShardedTables
from eupmim_dist.parallel.world import World
from eupmim_dist.train.state import Run

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one rank has no need of it


def model_tensors(model: Model, tables: ShardedTables) -> dict[str, Tensor]:
    """Views of the weights: loading into them sets the model."""
    return {**{f"dense.{name}": p.detach() for name, p in model.named_parameters()}, **table_rows(tables)}


def training_tensors(run: Run) -> dict[str, Tensor]:
    """Views of the weights and of every optimizer state."""
    return {
        **model_tensors(run.model, run.tables),
        **table_states(run.tables, run.table_optimizer),
        **{f"dense_optimizer.{name}": value for name, value in run.dense.optimizer_state().items()},
    }


def table_rows(tables: ShardedTables) -> dict[str, Tensor]:
    return row_views({f"table.{name}": (shard, shard.weight) for name, shard in tables.shards.items()}, tables.world)


def table_states(tables: ShardedTables, optimizer: TableOptimizer) -> dict[str, Tensor]:
    state = {
        f"table_optimizer.{name}.{key}": (tables.shards[name], value)
        for name, by_key in optimizer.row_state.items()
        for key, value in by_key.items()
    }
    return row_views(state, tables.world)


def row_views(shards: Mapping[str, tuple[Shard, Tensor]], world: World) -> dict[str, Tensor]:
    """A tensor with one entry per row of a shard -> the whole as a DTensor over the ranks, without a copy."""
    views: dict[str, Tensor] = {}
    for name, (shard, tensor) in shards.items():
        if world.size == 1 or shard.replicated:
            views[name] = tensor
            continue
        mesh = _mesh(tensor.device.type, world.size)
        shape = torch.Size([shard.spec.rows, *tensor.shape[1:]])
        stride = torch.empty(shape, device="meta").stride()
        views[name] = DTensor.from_local(tensor, mesh, [ShardPlacement(0)], shape=shape, stride=stride)
    return views


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor of which this rank holds a number that is not finite."""
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        # By the least and the largest, which NaN comes through: no mask as large as the table.
        if local.numel() and local.is_floating_point() and not torch.stack(torch.aminmax(local)).isfinite().all():
            return name
    return None


def host_copies(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The tensors as they are now, in host memory."""

    def copy(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor.detach().to("cpu", copy=True)
        local, mesh = copy(tensor.to_local()), _mesh("cpu", world.size)
        return DTensor.from_local(local, mesh, tensor.placements, shape=tensor.shape, stride=tensor.stride())

    return {name: copy(tensor) for name, tensor in tensors.items()}


@cache
def _mesh(device_type: str, size: int) -> DeviceMesh:
    return init_device_mesh(device_type, (size,))


@contextmanager
def readable_failures(path: Path) -> Iterator[None]:
    """Turns torch's CheckpointException, which is no Exception and holds tracebacks, into one line."""
    try:
        yield
    except CheckpointException as failed:
        rank, (error, _) = min(failed.failures.items())
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be read or written on rank {rank}: {error.strerror or error}") from failed
        raise RuntimeError(f"{path}: rank {rank}: {type(error).__name__}: {error}") from failed
