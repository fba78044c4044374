"""How fast training goes, and what else takes its time."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SECONDS = "seconds/"
"""What metrics that are times of a run begin with: seconds/training, seconds/evaluation, seconds/checkpoint."""


@dataclass
class Window:
    seconds: float = 0.0
    samples: int = 0

    @property
    def rate(self) -> float:
        """Samples per second, 0.0 if no time passed."""
        return self.samples / self.seconds if self.seconds > 0 else 0.0


class Throughput:
    """Seconds and samples of training since the last `window()`, without the time spent inside `pause()`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._samples = 0
        self._paused = 0.0
        self._told = 0.0
        self._started = clock()

    def add(self, samples: int) -> None:
        """Count `samples` of the global batch as done."""
        self._samples += samples

    @contextmanager
    def pause(self) -> Iterator[Window]:
        """Time inside (an evaluation, a checkpoint) does not count; pauses do not nest. Its length once it is over."""
        started, pause = self._clock(), Window()
        try:
            yield pause
        finally:
            pause.seconds = self._clock() - started
            self._paused += pause.seconds

    def untold(self) -> float:
        """Seconds of training since the last call, or the start of it: what is not yet on record."""
        seconds = self._clock() - self._started - self._paused
        untold, self._told = seconds - self._told, seconds
        return untold

    def window(self) -> Window:
        """What was done since the last call (or the start); starts a new window.

        GPU work is asynchronous: call it once the step has been waited for, as by reading the loss.
        """
        now = self._clock()
        window = Window(now - self._started - self._paused, self._samples)
        self._samples, self._paused, self._started = 0, 0.0, now
        self._told -= window.seconds
        return window
