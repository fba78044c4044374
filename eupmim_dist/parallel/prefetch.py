"""Prepares the next steps in a thread while this one computes; what it exchanges meets nothing of the step's."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Generic, TypeVar

from eupmim_dist.parallel.agreement import GRACE_SECONDS
from eupmim_dist.parallel.exchange import Connections, open_connections
from eupmim_dist.parallel.world import World

T = TypeVar("T")
Prepare = Callable[[int, Connections | None], T]

STEPS_AHEAD = 2
"""Steps prepared beside the one that computes: with two, one that takes longer to prepare than a step to compute holds
nothing up (docs/benchmarks/training.md). Each is a batch in memory, and a request to stop, which travels with what is
prepared, is heeded as many steps later."""


class Prefetcher(Generic[T]):
    """`take(step)` gives what `prepare(step, connections)` returned, and has the next steps prepared meanwhile.

    Results are those of calling `prepare` in turn. It may communicate over `connections`, where nobody else
    receives what it sends, and must not depend on what the steps compute. What it raises, `take` raises. Creating one
    is collective.
    """

    def __init__(self, prepare: Prepare[T], world: World, last_step: int, ahead: bool = True) -> None:
        """`last_step` is the last one that will be taken; without `ahead` a step is prepared when it is taken."""
        self.waited_seconds = 0.0
        self._prepare, self._last, self._run_ahead = prepare, last_step, ahead
        self._connections = open_connections("prefetch") if ahead and world.size > 1 else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: deque[tuple[int, Future[T]]] = deque()  # one after another, alike on all ranks
        self._failed = False

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        futures = [future for _, future in self._ahead]
        if kind is not None and self._connections is not None:
            # Where all ranks have failed alike this ends; the thread of one that fails alone may wait for a rank that
            # will not come, until the collective timeout.
            wait(futures, timeout=GRACE_SECONDS)
        # What has been begun must be finished, since the other ranks wait for it, and may have failed.
        self._thread.shutdown(wait=kind is None or self._connections is None, cancel_futures=kind is not None)
        if kind is None:
            for future in futures:
                future.result()

    def take(self, step: int) -> T:
        started = time.perf_counter()
        if not self._run_ahead:
            prepared = self._prepare(step, None)
            self.waited_seconds += time.perf_counter() - started
            return prepared
        if not self._ahead or self._ahead[0][0] != step:
            self._ahead.clear()
            self._submit(step)
        _, future = self._ahead.popleft()
        prepared = future.result()
        self.waited_seconds += time.perf_counter() - started
        following = self._ahead[-1][0] + 1 if self._ahead else step + 1
        for later in range(following, min(step + STEPS_AHEAD, self._last) + 1):
            self._submit(later)
        return prepared

    def _submit(self, step: int) -> None:
        self._ahead.append((step, self._thread.submit(self._in_turn, step)))

    def _in_turn(self, step: int) -> T:
        if self._failed:  # the other ranks, whose preparation of that step failed too, go no further either
            raise CancelledError
        try:
            return self._prepare(step, self._connections)
        except BaseException:
            self._failed = True
            raise
