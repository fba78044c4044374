"""`train.compile`: how a GPU is given the network of a step: kernel by kernel, as recorded CUDA graphs, or fused."""

import torch

from eupmim_dist.config.schema import TrainConfig
from eupmim_dist.data.batch import UserBatch
from eupmim_dist.errors import UserError
from eupmim_dist.models.interface import Model
from eupmim_dist.parallel.merge import lack_of_triton
from eupmim_dist.parallel.world import World


def is_compiled(config: TrainConfig, world: World) -> bool:
    """Whether the network is: a CPU has no launches to save, and its operators are written for it."""
    return config.compile != "none" and world.device.type == "cuda"


def compile_network(model: Model, config: TrainConfig, world: World) -> None:
    """Has `model` compiled by torch when it is first called; its parameters and their names stay. The look-up and the
    objective, whose shapes vary from step to step, are left as they are.

    CUDA graphs copy the parameters for each replay. Raises UserError for a model whose batches are not all of one
    shape, and where what the compiler needs is missing.
    """
    if not is_compiled(config, world):
        return
    if model.batch_type is not UserBatch:
        raise UserError(f"train.compile: {type(model).__name__} is given batches of many shapes; use none")
    torch._dynamo.config.optimize_ddp = False  # one graph: in so small a network there is nothing to overlap with
    if config.compile == "cuda_graphs":
        model.compile(backend="cudagraphs", dynamic=False)
        return
    if lack := lack_of_triton():
        raise UserError(f"train.compile: inductor cannot be: {lack}; or use cuda_graphs")
    model.compile(mode="reduce-overhead", dynamic=False)


def told_of_compiling(config: TrainConfig, world: World) -> str | None:
    """For the log."""
    if config.compile == "none":
        return None
    if not is_compiled(config, world):
        return f"train.compile={config.compile} is for GPUs: without one, the network runs as it is"
    return f"the network is compiled ({config.compile}) when it is first used, which takes the first steps longer"


def begin_step(config: TrainConfig, world: World) -> None:
    """Before the first forward of a step: what a graph gave in the one before may be overwritten from here on, what it
    gave for a micro-batch of this one may not."""
    if is_compiled(config, world):
        torch.compiler.cudagraph_mark_step_begin()
