"""Where training stands, and other long work: a live line on a terminal, plain lines now and then elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Event, Thread
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, DownloadColumn, Progress, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eupmim_dist.telemetry.log import console, get_logger

QUICK_SECONDS = 2.0
"""What takes no longer needs no line of its own."""
LONGEST_PAUSE = 60.0
"""Seconds between two plain lines about something that is under way, in the end."""


class StepProgress:
    """Shows step, loss, speed, time left and the best validation metric; silent unless `is_main`, or where the log is.

    Args:
        total_steps: the step training ends at.
        first_step: the step it starts from (a resumed run's checkpoint).
        is_main: true on rank 0.
        every_seconds: the least time between two plain lines; the first and the last update always print.
        silence: the longest time without one, as far as steps go.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int = 0,
        is_main: bool = True,
        every_seconds: float = 5.0,
        silence: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._first, self._is_main = total_steps, first_step, is_main
        self._every, self._silence, self._clock = every_seconds, silence, clock
        self._started = clock()
        self._printed: float | None = None
        self._told = ""
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
        line = self._told = self._line(step, loss, samples_per_second, best)
        if self._live:
            self._live.update(self._task, completed=step, description=line)
        elif self._printed is None or step >= self._total or self._clock() - self._printed >= self._every:
            get_logger().info(line)
            self._printed = self._clock()

    def tick(self, step: int) -> None:
        """A sign of life between updates, which are `train.log_every` steps apart: without a number from the device."""
        if not self._is_main:
            return
        told = self._told or f"step {step}/{self._total}{self._left(step)}"
        if self._live:
            self._live.update(self._task, completed=step, description=told)
        elif self._clock() - (self._printed or self._started) >= self._silence:
            get_logger().info(f"step {step}/{self._total}{self._left(step)}")
            self._printed = self._clock()

    def _left(self, step: int) -> str:
        if step <= self._first:
            return ""
        seconds = (self._clock() - self._started) / (step - self._first) * (self._total - step)
        return f"  {timedelta(seconds=round(seconds))} left"

    def _line(self, step: int, loss: float, samples_per_second: float, best: tuple[str, float] | None) -> str:
        parts = [f"step {step}/{self._total}", f"loss {loss:.4f}", f"{samples_per_second:,.0f} samples/s"]
        told = "  ".join(parts) + self._left(step)
        return told + (f"  best {best[0]} {best[1]:.4f}" if best else "")

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()


def duration(seconds: float) -> str:
    """`1.2 s`, and from a minute on `0:01:05`."""
    return f"{seconds:.1f} s" if seconds < 59.95 else str(timedelta(seconds=round(seconds)))


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


@contextmanager
def task_progress(what: str, total: float | None = None, is_main: bool = True) -> Iterator[Callable[[float], None]]:
    """A function to tell of what is done of `total` since the last time; with no total it cannot be known.

    On a terminal rank 0 shows a bar until it ends, with the time left; without a total it pulses, with the time taken.
    Elsewhere it logs a line after QUICK_SECONDS and others at growing intervals, whatever the body is busy with.
    """
    shown, terminal = is_main and get_logger().isEnabledFor(logging.INFO), console().is_terminal
    clock = TimeElapsedColumn() if total is None else TimeRemainingColumn()
    columns = TextColumn("{task.description}"), BarColumn(), clock
    with Progress(*columns, console=console(), transient=True, disable=not (shown and terminal)) as bar:
        bar.add_task(what, total=total)
        [task], over = bar.tasks, Event()
        lines = Thread(target=_log_now_and_then, args=(task, over), daemon=True)
        if shown and not terminal:
            lines.start()
        try:
            yield lambda done: bar.advance(task.id, done)
        finally:
            over.set()


def _log_now_and_then(task: Task, over: Event) -> None:
    pause = QUICK_SECONDS
    with suppress(OSError):  # a stream that has gone is for the next line of the main thread to find
        while not over.wait(pause):
            share = "" if task.total is None else f", {task.percentage:.0f} %"
            get_logger().info(f"{task.description}{share}, {task.elapsed or 0:.0f} s so far")
            pause = min(2 * pause, LONGEST_PAUSE)
