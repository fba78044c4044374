"""Tables as commands print them, which a file takes whole."""

from rich.console import Console
from rich.table import Table

from eupmim_dist.telemetry.log import console

WIDTH_OF_FILES = 160
"""Characters of a line where the output is no terminal."""


def print_table(table: Table) -> None:
    """On stdout, as wide as the terminal allows."""
    terminal = console()
    if not terminal.is_terminal:
        terminal = Console(width=WIDTH_OF_FILES, highlight=False, markup=False)
    terminal.print(table)
