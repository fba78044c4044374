"""Where training stands: one live line on a terminal, a plain line now and then elsewhere. And how far files are."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from eupmim_dist.telemetry.log import console, get_logger


class StepProgress:
    """Shows step, loss, speed, time left and the best validation metric; silent unless `is_main`, or where the log is.

    Args:
        total_steps: the step training ends at.
        first_step: the step it starts from (a resumed run's checkpoint).
        is_main: true on rank 0.
        every_seconds: the least time between two plain lines; the first and the last update always print.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int = 0,
        is_main: bool = True,
        every_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._first, self._is_main = total_steps, first_step, is_main
        self._every, self._clock = every_seconds, clock
        self._started = clock()
        self._printed: float | None = None
        self._live: Progress | None = None
        if is_main and console().is_terminal and get_logger().isEnabledFor(logging.INFO):
            self._live = Progress(TextColumn("{task.description}"), BarColumn(), console=console())
            self._task = self._live.add_task("starting", total=total_steps, completed=first_step)

    def update(
        self,
        step: int,
        loss: float,
        samples_per_second: float,
        best: tuple[str, float] | None = None,
    ) -> None:
        """Show the state after `step` steps; `best` is the best validation metric so far and its name."""
        if not self._is_main:
            return
        line = self._line(step, loss, samples_per_second, best)
        if self._live:
            self._live.update(self._task, completed=step, description=line)
        elif self._printed is None or step >= self._total or self._clock() - self._printed >= self._every:
            get_logger().info(line)
            self._printed = self._clock()

    def _line(self, step: int, loss: float, samples_per_second: float, best: tuple[str, float] | None) -> str:
        parts = [f"step {step}/{self._total}", f"loss {loss:.4f}", f"{samples_per_second:,.0f} samples/s"]
        if step > self._first:
            seconds = (self._clock() - self._started) / (step - self._first) * (self._total - step)
            parts.append(f"{timedelta(seconds=round(seconds))} left")
        if best:
            parts.append(f"best {best[0]} {best[1]:.4f}")
        return "  ".join(parts)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()


@contextmanager
def byte_progress(what: str, total: int, is_main: bool = True) -> Iterator[Callable[[int], None]]:
    """A function to tell of bytes done since the last time, shown on rank 0's stderr as a share of `total`.

    Nothing is shown where that is no terminal.
    """
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    terminal = console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=not (is_main and terminal.is_terminal)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
