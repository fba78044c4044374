"""Pages of a CPU's memory: kept from step to step, and huge where the kernel has such.

Linux and glibc alone need it; elsewhere all of it does nothing.
"""

import ctypes
import mmap
import resource
from contextlib import suppress

HUGE_PAGE = 2 << 20
LARGEST_KEPT, KEPT_BYTES = 32 << 20, 3 << 29  # which are ints of C
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _USUAL_PAD = -1, -2, -3, 128 << 10
"""What malloc.h calls its settings, and one's usual value."""
ADDRESSES = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
"""Limits of a process's addresses."""


def keep_freed_memory() -> None:
    """Lets malloc keep what a step frees for the next one; else the kernel maps and clears it anew every step. Half of
    it is of huge pages: a step's tensors lie on more small ones than a processor remembers the addresses of.

    Only addresses are taken ahead, which overcommit_memory=2 counts; none are where they are limited (ulimit -v, -d).
    Blocks above LARGEST_KEPT bytes, such as large tables, still go back at once.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
        libc.mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
        if any(resource.getrlimit(kind)[0] != resource.RLIM_INFINITY for kind in ADDRESSES):
            return
        libc.mallopt(_TOP_PAD, KEPT_BYTES // 2)
        start = libc.malloc(LARGEST_KEPT // 2)  # where so much is not free, the heap grows by it and the pad
        libc.mallopt(_TOP_PAD, _USUAL_PAD)
        if start:
            advise_huge_pages(start, libc.sbrk(0))
        libc.free(ctypes.c_void_p(start))


def advise_huge_pages(start: int, end: int) -> None:
    """For the addresses from `start` to `end`, before the first write to them, which is what takes pages."""
    first = -(-start // HUGE_PAGE) * HUGE_PAGE
    size = (end - first) // HUGE_PAGE * HUGE_PAGE
    with suppress(OSError, AttributeError):
        if size > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
