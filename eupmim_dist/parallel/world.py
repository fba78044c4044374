"""The world a process runs in: its rank, how many there are, its device.

Works unchanged under `eupmim-dist launch`, `accelerate launch`, `torchrun`, the `deepspeed` launcher and
plain `python -m eupmim_dist` (one rank, no process group).
"""

import atexit
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from eupmim_dist.errors import UserError
from eupmim_dist.parallel import heartbeat, network, processors
from eupmim_dist.parallel.pages import keep_freed_memory

COLLECTIVES_RECORDED = 1000
"""The last ones, of which torch's flight recorder tells after a failure (parallel/heartbeat.py)."""
_LAUNCHER_ENV = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


parted = threading.Event()
"""Set once this rank knows of a failure: the ranks may no longer be in step."""


@dataclass(frozen=True)
class World:
    """One process among `size`; on one node there are `local_size` of them, each with its own `device`."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def has_levels(self) -> bool:
        """Whether there are several nodes of several ranks; on others `two_level` is `flat` (route.py)."""
        return 1 < self.local_size < self.size


def init_world(cpu: bool = False) -> World:
    """Join the process group a launcher prepared, or be the only rank; calling it again is harmless.

    CPU ranks talk over gloo. GPU ranks get both backends: NCCL for GPU tensors, gloo for CPU tensors. CPU
    is used when asked for (`cpu`, ACCELERATE_USE_CPU) or when there is no GPU. A collective that takes
    longer than EUPMIM_TIMEOUT_SECONDS (default 600) fails.

    Raises:
        UserError: the world is not the one that was asked for, the launcher's environment is incomplete, there are
            more ranks than GPUs on this node, or ranks do not reach each other (parallel/network.py).
    """
    env = os.environ
    launched = any(name in env for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if launched and (missing := [name for name in _LAUNCHER_ENV if not env.get(name)]):
        raise UserError(
            f"the launcher's environment lacks {', '.join(missing)}: start the ranks with "
            "`eupmim-dist launch`, `accelerate launch` or `torchrun`"
        )
    if not launched and "ACCELERATE_MIXED_PRECISION" in env and "MASTER_ADDR" in env:
        # accelerate's simple launcher was asked for several processes (else it sets no MASTER_ADDR) and
        # started one.
        raise UserError(
            "accelerate launch started a single process where several were asked for: use "
            "`eupmim-dist launch --cpu --nproc N -- ...` or "
            "`accelerate launch --multi_gpu --num_processes N ...`"
        )
    rank = _integer("RANK", 0)
    size = _integer("WORLD_SIZE", 1)
    local_rank = _integer("LOCAL_RANK", 0)
    local_size = _integer("LOCAL_WORLD_SIZE", _integer("LOCAL_SIZE", size))  # LOCAL_SIZE: the deepspeed launcher's
    if (asked := _integer("EUPMIM_WORLD_SIZE", size)) != size:
        raise UserError(
            f"{asked} ranks were asked for (EUPMIM_WORLD_SIZE) but this world has {size}: start it with "
            f"`eupmim-dist launch --nproc {asked} -- ...`, or unset EUPMIM_WORLD_SIZE"
        )

    cpu = cpu or env.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available()
    device = torch.device("cpu") if cpu else torch.device("cuda", _gpu(rank, local_rank))
    if not cpu:
        torch.cuda.set_device(device)
        _keep_float32_exact()
    else:
        processors.keep_to_one(local_rank, local_size)
    world = World(rank, size, local_rank, local_size, device)
    timeout = timedelta(seconds=collective_timeout())
    if launched and not dist.is_initialized():
        gpu = None if cpu else str(torch.cuda.get_device_properties(device).uuid)
        os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(COLLECTIVES_RECORDED))
        store = network.join(rank, size, gpu, timeout)
        # Created here, not by Accelerate, which has no way to ask for both backends and a bound device at
        # once. gloo beside NCCL: agreements, object collectives and checkpoints then need no GPU
        # synchronisation.
        dist.init_process_group(
            backend="gloo" if cpu else "cpu:gloo,cuda:nccl",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timeout,
            device_id=None if cpu else device,
        )
        if size > 1:
            heartbeat.begin(dist.distributed_c10d._get_default_store(), rank, timeout.total_seconds())
        atexit.register(_leave, world)  # where ranks are a script's; those of the command line leave without it

    # DeepSpeed looks for a GPU itself, and warns where it finds none.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    if launched:
        from accelerate.state import PartialState

        # Without cpu=True Accelerate believes in one process on a machine without GPUs. Made before any
        # Accelerator, so that a later one adopts this state; with the group already there it only reads it.
        # A process alone is left the choice, as a notebook may recommend on a CPU and train on a GPU.
        PartialState(cpu=cpu, timeout=timeout)
    if cpu:
        keep_freed_memory()
    return world


def _gpu(rank: int, local_rank: int) -> int:
    """The number of this rank's GPU among those it sees: one of its own, or all of its node."""
    if (visible := torch.cuda.device_count()) == 1:
        return 0  # whether another rank has it too, ranks find out together: parallel/network.py
    if local_rank >= visible:
        raise UserError(
            f"rank {rank} needs GPU {local_rank} of its node, which has {visible}: start fewer ranks or use --cpu"
        )
    return local_rank


def _leave(world: World) -> None:
    """Has the ranks of a script, which end by returning, meet as in `shutdown`; not after a failure."""
    if beating := heartbeat.mine():
        beating.stop()  # its thread may not be in the store when the interpreter goes
    if getattr(sys, "last_value", None) is None and not parted.is_set():
        with suppress(RuntimeError):  # another rank has gone already, by an exception
            shutdown(world)


def shutdown(world: World) -> None:
    """Meet the other ranks once more after success, so that none exits while another still needs it.

    The process group is left as it is and ends with the process (cli/app.py): DDP's reducer may hold the last
    reference to it, and then gloo's thread is joined with the GIL held, which that thread may be waiting for.
    """
    if world.size == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    store.set(f"eupmim/bye/{world.rank}", "")
    store.wait([f"eupmim/bye/{rank}" for rank in range(world.size)], timedelta(seconds=30))
    if world.is_main:
        time.sleep(0.2)  # rank 0's process may hold the store that the others have just read


def collective_timeout() -> int:
    """Seconds after which a collective fails."""
    seconds = _integer("EUPMIM_TIMEOUT_SECONDS", 600)
    if seconds < 1:
        raise UserError(f"EUPMIM_TIMEOUT_SECONDS={seconds} must be at least 1")
    return seconds


def _keep_float32_exact() -> None:
    """Full float32 products, whatever an image sets: exact rankings, and runs that agree, need all of the digits.

    What is to be faster is trained in bf16. An override for NVIDIA's libraries is read when they are first used.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"


def _integer(name: str, default: int) -> int:
    value = os.environ.get(name)
    try:
        return int(value) if value else default
    except ValueError:
        raise UserError(f"the environment variable {name}={value!r} is not a whole number") from None
