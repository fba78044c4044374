"""How fast training goes, not counting the time it stands still."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throughput:
    """Samples per second since the last `rate()`, without the time spent inside `pause()`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._samples = 0
        self._paused = 0.0
        self._started = clock()

    def add(self, samples: int) -> None:
        """Count `samples` of the global batch as done."""
        self._samples += samples

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside (an evaluation, a checkpoint) does not count; pauses do not nest."""
        started = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - started

    def rate(self) -> float:
        """Samples per second since the last call (or the start), 0.0 if no time passed; starts a new window.

        GPU work is asynchronous: call it once the step has been waited for, as by reading the loss.
        """
        now = self._clock()
        seconds = now - self._started - self._paused
        samples = self._samples
        self._samples, self._paused, self._started = 0, 0.0, now
        return samples / seconds if seconds > 0 else 0.0
