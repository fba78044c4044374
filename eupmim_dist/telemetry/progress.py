"""Where training stands, and other long work: a live line on a terminal, plain lines now and then elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    """Has a line in the log whenever it is told of losses, and on a terminal a bar below; silent unless `is_main`.

    Args:
        total_steps: the step training ends at.
        first_step: the step it starts from (a resumed run's checkpoint).
        is_main: true on rank 0.
        silence: seconds after which there is a line all the same, where there is no bar.
    """

    def __init__(
        self,
        total_steps: int,
        first_step: int = 0,
        is_main: bool = True,
        silence: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._first, self._is_main = total_steps, first_step, is_main
        self._silence, self._clock = silence, clock
        self._started = self._printed = clock()
        self._live: Progress | None = None
        if is_main and console().is_terminal and get_logger().isEnabledFor(logging.INFO):
            self._live = Progress(TextColumn("{task.description}"), BarColumn(), console=console(), transient=True)
            self._task = self._live.add_task("starting", total=total_steps, completed=first_step)

    def update(self, step: int, loss: float, samples_per_second: float) -> None:
        """The state after `step` steps: a line."""
        if self._is_main:
            self._move(step)
            self._print(self._where(step, f"  loss {loss:.4f}  {samples_per_second:,.0f} samples/s"))

    def tick(self, step: int) -> None:
        """A sign of life between updates, which are `train.log_every` steps apart: without a number from the device."""
        if self._is_main:
            self._move(step)
            if not self._live and self._clock() - self._printed >= self._silence:
                self._print(self._where(step))

    def _move(self, step: int) -> None:
        if self._live:
            self._live.update(self._task, completed=step, description=self._where(step))

    def _print(self, line: str) -> None:
        get_logger().info(f"{time_of_day()}  {line}")
        self._printed = self._clock()

    def _where(self, step: int, numbers: str = "") -> str:
        told = f"step {step}/{self._total}{numbers}"
        if step <= self._first:
            return told
        left = (self._clock() - self._started) / (step - self._first) * (self._total - step)
        return f"{told}  {in_hours(left)} left"

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()


def time_of_day() -> str:
    """What lines of the log about a step begin with."""
    return time.strftime("%H:%M:%S")


def in_hours(seconds: float) -> str:
    """`0:01:05`, of days too: `49:00:00`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def in_bytes(size: int) -> str:
    """`12.3 MB`, and from 1,000 MB on in GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 999_950_000 else f"{size / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """`1.2 s`, and from a minute on `0:01:05`."""
    return f"{seconds:.1f} s" if seconds < 59.95 else in_hours(seconds)


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
