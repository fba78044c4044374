"""A training is asked to leave, by the system or by Ctrl-C: it finishes its step, saves and exits."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from eupmim_dist.telemetry.log import get_logger
from eupmim_dist.train.state import Run

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What batch systems send some time before they kill, and Ctrl-C; one rank's is enough."""

EXIT_CODE = 75
"""sysexits.h's EX_TEMPFAIL: start the same command again."""


@contextmanager
def leaving_on_signal(run: Run) -> Iterator[None]:
    """While training: a signal requests a stop. A second one does what it would have done without this."""
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}

    def request(number: int, frame: FrameType | None) -> None:
        run.stop_requested.set()
        get_logger(run.world.rank).warning("asked to stop: saving after the step; a second time stops at once")
        signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
