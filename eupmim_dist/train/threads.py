"""How many threads a CPU rank trains with: as asked for, as before, or what is measured to be fastest here.

More are often slower: the operations of a small network end before their threads have begun. Sums of floats differ with
the number, so it is on record in the run's configuration, and a run that is gone on with keeps it.
"""

import os
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from eupmim_dist.errors import UserError
from eupmim_dist.parallel.agreement import agreed, decided_by_main
from eupmim_dist.parallel.processors import of_each_rank
from eupmim_dist.parallel.world import World
from eupmim_dist.train.loss import Loss
from eupmim_dist.train.state import Run

T = TypeVar("T")

CHOOSE_VARIABLE = "EUPMIM_CHOOSE_THREADS"
"""Set by `launch` where nobody has asked for a number: OMP_NUM_THREADS is then the most there may be."""

SECONDS = 1.5
"""About what measuring may take, beside finding how much to measure."""
ROUNDS, MOST_ROUNDS = 3, 10
"""How often each number should have its turn: other work on the machine should not decide."""
FIRST_SAMPLES = 16
WORTH = 0.95
"""More threads must need less than this share of the time: those that are left prepare the next batches."""


@contextmanager
def threads_restored() -> Iterator[None]:
    """Leaves torch with as many threads as it had."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settle_threads(run: Run, before: int | None = None) -> str | None:
    """Sets the number of torch's threads and `train.threads` of the run's configuration; collective.

    It is, the first that there is: the setting; `before`, what the checkpoint was trained with, where this node has as
    many for each rank; OMP_NUM_THREADS; the fastest. On a GPU only the setting counts. All ranks have the same.

    Returns a line for the log where the user has not chosen it. Raises UserError for more threads than CPUs.
    """
    settings, world = run.config.train, run.world
    line, cpus = None, os.cpu_count() or 1
    with agreed(world):
        if (settings.threads or 1) > cpus:  # of which each would wait for the others in every operation
            raise UserError(
                f"train.threads: {settings.threads}, and this machine has {cpus} CPUs; give {cpus} or fewer"
            )
    if settings.threads is None and world.device.type == "cpu":
        most, asked, cores = decided_by_main(world, lambda: (_most(world), _is_asked(), of_each_rank(world.local_size)))
        if before is not None and before <= max(cores, most):
            settings.threads = before
            line = f"threads {before}, with which its checkpoint was trained" if before != most else None
        elif asked or most == 1:
            settings.threads = most
        else:
            settings.threads, line = _fastest(run, most)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return line


def _is_asked() -> bool:
    return bool(os.environ.get("OMP_NUM_THREADS")) and not os.environ.get(CHOOSE_VARIABLE)


def _most(world: World) -> int:
    """What torch would use, which goes by OMP_NUM_THREADS or by who has set it in Python."""
    threads = torch.get_num_threads()
    return threads if _is_asked() else min(threads, of_each_rank(world.local_size))


def _fastest(run: Run, most: int) -> tuple[int, str]:
    """The number of threads that this rank's next batch, or a part of it, goes fastest with, and the line that says so.

    Ranks measure together, so that they have the same to communicate and share the machine as in training; the times of
    rank 0 decide.
    """
    counts = sorted({1 << bits for bits in range(most.bit_length())} | {most})
    with threads_restored():
        work, samples, times = _sized_work(run, counts)
        started = time.perf_counter()
        for _ in range(min(MOST_ROUNDS, int(SECONDS / (2 * len(counts) * max(times.values()))))):
            for count in counts:
                times[count] = min(times.get(count, float("inf")), _least_seconds(work, count))
            if _of_main(run, time.perf_counter() - started) > SECONDS:
                break
        times = _of_main(run, times)
    least = min(times.values())
    fastest = min(count for count in times if WORTH * times[count] <= least)
    others = ", ".join(f"{1000 * times[count]:.1f} ms with {count}" for count in sorted(times) if count != fastest)
    told = f"{1000 * times[fastest]:.1f} ms forward and backward of {samples} samples; {others}"
    return fastest, textwrap.fill(f"threads {fastest} of {most}: {told}", 80, subsequent_indent=" " * 8)


def _sized_work(run: Run, counts: list[int]) -> tuple[Callable[[], None], int, dict[int, float]]:
    """Work of a size that can be measured in time, of how many samples it is, and what it takes the fewest and the most
    threads: these may take a hundred times as long where other work has a core."""
    accumulation = run.config.train.accumulation
    parts = max(accumulation, -(-run.task.sample(run.progress.step).capacity // FIRST_SAMPLES))
    while True:
        work, samples = _forward_and_backward(run, parts)
        times = _of_main(run, {count: _least_seconds(work, count) for count in (counts[0], counts[-1])})
        if parts == accumulation or 2 * ROUNDS * 2 * len(counts) * max(times.values()) > SECONDS:
            return work, samples, times
        parts = max(accumulation, parts // 2)


def _least_seconds(work: Callable[[], None], count: int) -> float:
    torch.set_num_threads(count)
    return min(_seconds(work), _seconds(work))  # threads begin in the first, and what is not there yet is made


def _forward_and_backward(run: Run, parts: int) -> tuple[Callable[[], None], int]:
    """A pass over one of so many parts of the next batch, which changes nothing, and of how many samples it is.

    Gradients are taken from the bare network, beside those that DDP or DeepSpeed wait for.
    """
    step = run.progress.step
    batch = run.task.sample(step).micro_batch(0, parts)
    candidates = run.objective.draw(batch, step)
    rows = run.tables.lookup(run.model.uses(batch) | candidates.uses()).rows[0]
    catalogue = run.tables.catalogue() if run.objective.whole_catalogue else None
    loss = Loss(run.model, run.objective).train()
    leaves = [*(parameter for parameter in run.model.parameters() if parameter.requires_grad), *rows.values()]
    if catalogue is not None:
        leaves.append(catalogue.rows)
    buffers = [*loss.buffers()]

    def work() -> None:
        kept = [buffer.clone() for buffer in buffers]
        with torch.random.fork_rng(devices=[]):
            with run.dense.accelerator.autocast():
                shares = loss(rows, batch, candidates, catalogue)
            torch.autograd.grad(torch.stack(list(shares.values())).sum(), leaves, allow_unused=True)
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)

    return work, len(batch)


def _of_main(run: Run, measured: T) -> T:
    return decided_by_main(run.world, lambda: measured)


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
