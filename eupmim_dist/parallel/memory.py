"""Memory of tables: allocated once, read and written a row here and a row there."""

import ctypes
import mmap
from contextlib import suppress

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20


def table_zeros(*shape: int, device: torch.device) -> Tensor:
    """Float32 zeros for rows or their optimizer state.

    On a CPU under Linux in huge pages where the system has some: a step's rows are scattered, and finding the page
    of each takes as long as reading it (one rank of `bench tables`, Zipf ids: 17.1 against 15.1 ms a step with
    all large blocks of torch in huge pages).
    """
    tensor = torch.empty(*shape, device=device)
    if device.type == "cpu":
        _advise_huge_pages(tensor)  # before the first write, which is what takes pages
    return tensor.zero_()


def _advise_huge_pages(tensor: Tensor) -> None:
    start = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
    size = (tensor.data_ptr() + tensor.nbytes - start) // HUGE_PAGE * HUGE_PAGE
    with suppress(OSError, AttributeError):  # advice only: other systems have neither
        if size > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
