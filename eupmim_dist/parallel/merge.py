# mypy: allow-untyped-defs
"""Sums of rows by their target, as one Triton kernel pair for CUDA and as one torch operator for the rest."""

import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of torch come without it
    triton = tl = None

CHUNK = 128
"""Positions that one program sums. A longer segment is cut at the multiples of it."""

TILE = 1024
"""Elements that a program holds at a time."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def uses_triton(tensor: Tensor) -> bool:
    """Whether Triton kernels take this tensor: CUDA ones, and all in Triton's interpreter (for tests)."""
    return (tensor.is_cuda and lack_of_triton() is None) or (INTERPRETED and triton is not None)


@cache
def lack_of_triton() -> str | None:
    """Why Triton cannot build kernels for a GPU here, with the mend; None if it can."""
    if triton is None:
        return "Triton is not installed (pip install triton)"
    if not any(shutil.which(name) for name in ([os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"])):
        return "Triton needs a C compiler, and there is none (install gcc, or set CC)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Triton needs Python's headers, and Python.h is not there (install python3-dev)"
    return None


@torch.no_grad()
def merge_rows(values: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """float32 [n, D] whose row i is the sum of values[order[starts[i]:starts[i + 1]]]; the last one ends at k.

    values: float32, bfloat16 or float16 [m, D]. order: int32 [k], positions in `values` sorted by target.
    starts: int32 [n], ascending from 0 and at most k; equal neighbours make a row of zeros.
    Sums in float32, in an order that the arguments alone decide. The host does not wait for the device.
    """
    if not (len(starts) and len(order) and values.numel()):
        return values.new_zeros(len(starts), values.shape[1], dtype=torch.float32)
    if uses_triton(values):
        return _merge_rows_triton(values.contiguous(), order.contiguous(), starts.contiguous())
    return F.embedding_bag(order, values.float(), starts, mode="sum")


def _merge_rows_triton(values: Tensor, order: Tensor, starts: Tensor) -> Tensor:
    """First pass: partial sums of what the chunks hold of long segments. Second: every segment's row.

    A segment longer than a chunk holds the first or the last position of every chunk that it touches, so two
    partial sums per chunk are enough, and all sizes follow from n and k.
    """
    n, k, dim = len(starts), len(order), values.shape[1]
    width = triton.next_power_of_2(dim)
    shape = {"CHUNK": CHUNK, "BLOCK_P": max(1, min(TILE // width, CHUNK)), "BLOCK_D": width}
    warps = 1 if width <= TILE // 4 else 4  # most segments are a row or two: more warps would idle
    num_chunks = triton.cdiv(k, CHUNK)
    partial = values.new_empty(num_chunks, 2, dim, dtype=torch.float32)
    out = values.new_empty(n, dim, dtype=torch.float32)
    if num_chunks > 1:
        _sum_chunks[(num_chunks,)](values, order, starts, partial, n, k, dim, **shape, num_warps=warps)
    _sum_segments[(n,)](values, order, starts, partial, out, n, k, dim, **shape, num_warps=warps)
    return out


if triton is not None:

    @triton.jit(do_not_specialize=["n", "k"])  # they change every step
    def _sum_chunks(
        values, order, starts, partial, n, k, dim, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr
    ):
        """partial [chunks, 2, dim]: of the segment at a chunk's first position, of another one at its last."""
        chunk = tl.program_id(0)
        first = chunk * CHUNK
        last = tl.minimum(first + (CHUNK - 1), k - 1)  # first + CHUNK may not fit in an int32
        head = _segment_at(starts, tl.full([], 0, tl.int32), n, first)
        tail = _segment_at(starts, head, n, last)
        for slot in range(2):
            segment = tl.where(slot == 0, head, tail)
            start = tl.load(starts + segment)
            stop = tl.load(starts + segment + 1, mask=segment + 1 < n, other=k)
            if (stop - start > CHUNK) & ((slot == 0) | (head != tail)):
                start, stop = tl.maximum(start, first), tl.minimum(stop, last + 1)
                row = _sum_rows(values, order, start, stop, dim, BLOCK_P, BLOCK_D)
                columns = tl.arange(0, BLOCK_D)
                tl.store(partial + (chunk.to(tl.int64) * 2 + slot) * dim + columns, row, mask=columns < dim)

    @triton.jit(do_not_specialize=["n", "k"])
    def _sum_segments(
        values,
        order,
        starts,
        partial,
        out,
        n,
        k,
        dim,
        CHUNK: tl.constexpr,
        BLOCK_P: tl.constexpr,
        BLOCK_D: tl.constexpr,
    ):
        segment = tl.program_id(0)
        start = tl.load(starts + segment)
        stop = tl.load(starts + segment + 1, mask=segment + 1 < n, other=k)
        if stop - start <= CHUNK:
            row = _sum_rows(values, order, start, stop, dim, BLOCK_P, BLOCK_D)
        else:
            row = _sum_partial(partial, start, stop, dim, CHUNK, BLOCK_P, BLOCK_D)
        columns = tl.arange(0, BLOCK_D)
        tl.store(out + segment.to(tl.int64) * dim + columns, row, mask=columns < dim)

    @triton.jit
    def _segment_at(starts, low, n, position):
        """The last segment from `low` on that starts at or before the position."""
        high = n
        while high - low > 1:
            middle = low + (high - low) // 2
            before = tl.load(starts + middle) <= position
            low = tl.where(before, middle, low)
            high = tl.where(before, high, middle)
        return low

    @triton.jit
    def _sum_rows(values, order, start, stop, dim, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
        """[BLOCK_D] sum of values[order[start:stop]]."""
        offsets, columns = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
        for position in range(start, stop, BLOCK_P):
            inside = offsets < stop - position
            rows = tl.load(order + position + offsets, mask=inside, other=0).to(tl.int64)
            mask = inside[:, None] & (columns < dim)[None, :]
            total += tl.load(values + rows[:, None] * dim + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        return tl.sum(total, axis=0)

    @triton.jit
    def _sum_partial(partial, start, stop, dim, CHUNK: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr):
        """[BLOCK_D] sum of the partial sums of the long segment start..stop-1."""
        offsets, columns = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)
        total = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
        first, last = start // CHUNK, (stop - 1) // CHUNK
        for chunk in range(first, last + 1, BLOCK_P):
            chunks = chunk + offsets
            # Only where it starts can a segment miss its chunk's first position.
            slots = ((chunks == first) & (start > first * CHUNK)).to(tl.int64)
            rows = chunks.to(tl.int64) * 2 + slots
            mask = (chunks <= last)[:, None] & (columns < dim)[None, :]
            total += tl.load(partial + rows[:, None] * dim + columns[None, :], mask=mask, other=0.0)
        return tl.sum(total, axis=0)
