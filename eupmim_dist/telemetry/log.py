"""What the ranks say: rank 0 alone prints, in short plain lines."""

import sys
from functools import cache

from rich.console import Console


@cache
def console(stderr: bool = False) -> Console:
    """The one console per stream, so that a progress line and log lines do not overwrite each other."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False)


class Log:
    """Prints on rank 0 and nowhere else; `info` to stdout, `warning` to stderr."""

    def __init__(self, rank: int) -> None:
        self._speaks = rank == 0

    def info(self, message: str) -> None:
        self._print(message, stderr=False)

    def warning(self, message: str) -> None:
        self._print(f"warning: {message}", stderr=True)

    def _print(self, message: str, stderr: bool) -> None:
        if not self._speaks:
            return
        stream = sys.stderr if stderr else sys.stdout
        if stream.isatty():
            console(stderr).print(message)
        else:
            print(message, file=stream, flush=True)


def get_logger(rank: int = 0) -> Log:
    """The log of rank `rank`."""
    return Log(rank)
