"""What tools on files show: a progress bar of bytes, and tables that a file takes whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from eupmim_dist.telemetry.log import console

WIDTH_OF_FILES = 160
"""Characters of a line where the output is no terminal."""


@contextmanager
def byte_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to tell of bytes done since the last time, shown on a terminal's stderr as a share of `total`."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    terminal = console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def print_table(table: Table) -> None:
    """On stdout, as wide as the terminal allows."""
    terminal = console()
    if not terminal.is_terminal:
        terminal = Console(width=WIDTH_OF_FILES, highlight=False, markup=False)
    terminal.print(table)
