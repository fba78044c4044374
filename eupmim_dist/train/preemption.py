"""A training is asked to leave, by the system or by Ctrl-C: it finishes its step, saves and exits."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the launcher, which knows these signals, has no need of what a run imports
    from eupmim_dist.train.state import Run

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What batch systems send some time before they kill, and Ctrl-C; one rank's is enough."""

ANOTHER_FAILED = signal.SIGUSR2
"""What the launcher sends the other ranks once one has failed: they end too, and say nothing, for none will save."""

EXIT_CODE = 75
"""sysexits.h's EX_TEMPFAIL: start the same command again."""


@contextmanager
def leaving_on_signal(run: "Run") -> Iterator[None]:
    """While training: a signal requests a stop, a second Ctrl-C stops at once.

    Other signals may come twice: batch systems signal all processes of a job, and the launcher hands it on. In a thread
    other than the main one signals stay what they are: they go to the main one, which may be doing something else.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (*SIGNALS, ANOTHER_FAILED)}

    def request(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and run.stop_requested:
            raise KeyboardInterrupt
        # Written past everything that has a lock, since a handler runs in the middle of anything.
        if run.world.is_main and not run.stop_requested and number != ANOTHER_FAILED:
            again = ", a second Ctrl-C stops at once" if number == signal.SIGINT else ""
            with suppress(OSError):
                os.write(2, f"stopping after one of the next steps, which is then saved{again}\n".encode())
        run.stop_requested = True

    for number in previous:
        signal.signal(number, request)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not one of Python's
