"""What the ranks say: rank 0 alone prints, in short plain lines."""

import logging
import sys
from functools import cache

from rich.console import Console

NAME = "eupmim_dist"


@cache
def console(stderr: bool = False) -> Console:
    """The one console per stream, so that a progress line and log lines do not overwrite each other."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False, markup=False)


def get_logger(rank: int = 0) -> logging.Logger:
    """The log of rank `rank`: `info` goes to stdout, `warning` to stderr; ranks other than 0 are silent.

    Rank 0's is `logging.getLogger("eupmim_dist")`: a level set there holds, and handlers that it has before the first
    call are told instead of the streams.
    """
    return _main() if rank == 0 else _silent()


@cache
def _main() -> logging.Logger:
    logger = logging.getLogger(NAME)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_Lines())
        logger.propagate = False  # or it is told twice where the root logger has a handler
    return logger


@cache
def _silent() -> logging.Logger:
    logger = logging.getLogger(f"{NAME}.other_ranks")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


class _Lines(logging.Handler):
    """Prints to the streams that are there at that moment: they may have been redirected.

    Not rich's RichHandler: it folds lines at the terminal's width, and one on stderr writes into a progress line that
    is on stdout.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Raises OSError where the stream cannot be written."""
        line = self.format(record)
        if record.levelno >= logging.WARNING:
            line, stream = f"{record.levelname.lower()}: {line}", sys.stderr
        else:
            stream = sys.stdout
        # While a progress line is live, rich has both streams print above it; also one that is no terminal.
        if not stream.isatty():
            stream = getattr(stream, "rich_proxied_file", stream)
        print(line, file=stream, flush=True)
