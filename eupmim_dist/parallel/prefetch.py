"""Prepares the next step in a thread while this one computes, over connections of its own."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

from eupmim_dist.parallel.exchange import Connections, open_connections
from eupmim_dist.parallel.world import World

T = TypeVar("T")
Prepare = Callable[[int, Connections | None], T]


class Prefetcher(Generic[T]):
    """`take(step)` gives what `prepare(step, connections)` returned, and has the next step prepared meanwhile.

    Results are those of calling `prepare` in turn. It may communicate over `connections`, which nothing else uses, and
    must not depend on what the steps compute. What it raises, `take` raises. Creating one is collective.
    """

    def __init__(self, prepare: Prepare[T], world: World, last_step: int, ahead: bool = True) -> None:
        """`last_step` is the last one that will be taken; without `ahead` a step is prepared when it is taken."""
        self.waited_seconds = 0.0
        self._prepare, self._last, self._run_ahead = prepare, last_step, ahead
        self._connections = open_connections("prefetch") if ahead and world.size > 1 else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ahead: tuple[int, Future[T]] | None = None

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What is under way must be finished, since the other ranks wait for it, and may have failed; after a failure
        # the thread itself may wait for a rank that will not come, until the collective timeout.
        self._thread.shutdown(wait=kind is None or self._connections is None, cancel_futures=kind is not None)
        if kind is None and self._ahead is not None:
            self._ahead[1].result()

    def take(self, step: int) -> T:
        started = time.perf_counter()
        if not self._run_ahead:
            prepared = self._prepare(step, None)
            self.waited_seconds += time.perf_counter() - started
            return prepared
        if self._ahead is None or self._ahead[0] != step:
            self._submit(step)
        assert self._ahead is not None
        prepared = self._ahead[1].result()
        self.waited_seconds += time.perf_counter() - started
        self._ahead = None
        if step < self._last:
            self._submit(step + 1)
        return prepared

    def _submit(self, step: int) -> None:
        self._ahead = step, self._thread.submit(self._prepare, step, self._connections)
