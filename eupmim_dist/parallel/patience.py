"""How long a rank waits for others, or for a store that may never answer."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")


class Deadline:
    """Until when a rank waits; a time of `time.monotonic`."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.renew()

    def renew(self) -> None:
        self.at = time.monotonic() + self.patience

    def bring_forward(self, seconds: float) -> None:
        self.at = min(self.at, time.monotonic() + seconds)


def in_time(deadline: Deadline, margin: float, function: Callable[[], T]) -> T:
    """What `function` returns; TimeoutError a margin after the deadline, which may move: a store whose host is cut off
    never answers."""
    found: Future[T] = Future()

    def call() -> None:
        try:
            found.set_result(function())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    while (left := deadline.at + margin - time.monotonic()) > 0 and not found.done():
        wait([found], left)
    return found.result(0)
