"""Memory: whether there is enough of it, and that of tables, read and written a row here and a row there."""

from contextlib import suppress

import torch
from torch import Tensor

from eupmim_dist.parallel.agreement import everywhere
from eupmim_dist.parallel.pages import advise_huge_pages
from eupmim_dist.parallel.world import World


def available_bytes(device: torch.device) -> int | None:
    """Bytes that a process could still take, or None where that is not known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # which torch gives out again
        return torch.cuda.mem_get_info(device)[0] + cached
    with suppress(OSError, StopIteration), open("/proc/meminfo", encoding="utf-8") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return None


def lack_of_memory(needed: int, device: torch.device, world: World) -> str | None:
    """Why `needed` bytes of the device for each rank are too many, or None; one answer for all ranks. Collective.

    All have looked before any goes on, so that none finds the memory gone that another has begun to take.
    """
    ranks, free = world.local_size if device.type == "cpu" else 1, available_bytes(device)
    lack = None
    if free is not None and ranks * needed > free:
        each = f" for each of {ranks} ranks" if ranks > 1 else ""
        lack = f"needs {needed / 1e9:,.1f} GB of memory{each}, and {free / 1e9:,.1f} GB are free"
    return next(filter(None, everywhere(lack, world)), None)


def table_zeros(*shape: int, device: torch.device) -> Tensor:
    """Float32 zeros for rows or their optimizer state.

    On a CPU under Linux in huge pages where the system has some: a step's rows are scattered, and finding the page
    of each takes as long as reading it (one rank of `bench tables`, Zipf ids: 17.1 against 15.1 ms a step with
    all large blocks of torch in huge pages).
    """
    tensor = torch.empty(*shape, device=device)
    if device.type == "cpu":
        advise_huge_pages(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)
    return tensor.zero_()
