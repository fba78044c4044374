"""Clock, memory and bandwidth of the device that is measured."""

import ctypes
import gc
import statistics
import time
from contextlib import suppress
from typing import Any

import torch

COPIED_BYTES = 1 << 30


class Stopwatch:
    """Seconds of the phases of a step: by the clock, or by events on a GPU, which make nobody wait."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        self._marks.clear()
        self.mark("")

    def mark(self, phase: str) -> None:
        """Ends `phase`, which began at the mark before."""
        moment: Any = time.perf_counter()
        if self._cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._marks.append((phase, moment))

    def seconds(self) -> dict[str, float]:
        """By phase. To be called after the step; on a GPU, after synchronising with it."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._cuda:
            return {phase: start.elapsed_time(end) / 1000 for (_, start), (phase, end) in pairs}
        return {phase: end - start for (_, start), (phase, end) in pairs}


def now(device: torch.device) -> float:
    """Seconds on the clock once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def start_of_peak(device: torch.device) -> dict[str, int]:
    """Bytes in use now, by place, from which `peak_bytes` counts on."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed but kept would hide what is taken next
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # VmHWM starts again from the memory in use
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return peak_bytes(device)


def peak_bytes(device: torch.device) -> dict[str, int]:
    """The most bytes in use since `start_of_peak`: resident ones of the host (Linux only), allocated ones of a GPU."""
    peak = {}
    with suppress(OSError, StopIteration), open("/proc/self/status", encoding="utf-8") as lines:
        peak["host"] = next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    if device.type == "cuda":
        peak["GPU"] = torch.cuda.max_memory_allocated(device)
    return peak


def product_flops(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of a product of two square matrices, the best of ten after a first one."""
    factor = torch.randn(side, side, device=device).to(dtype)
    taken = []
    for _ in range(11):
        started = now(device)
        factor @ factor
        taken.append(now(device) - started)
    return 2 * side**3 / min(taken[1:])


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by copying a large tensor within the device."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = []
    for _ in range(10):
        started = now(device)
        target.copy_(source)
        taken.append(now(device) - started)
    return 2 * COPIED_BYTES / statistics.median(taken)
