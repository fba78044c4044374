"""The launcher's eye on the ranks of its node: one without a sign of life is killed, as it hears no signal."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import typer

MARGIN_SECONDS = 30.0
"""After the time limit of a collective, by which the others have given up a rank."""
POLL_SECONDS = 2.0


@contextmanager
def watched_ranks(limit: float) -> Iterator[tuple[Path, set[int]]]:
    """The directory for the heartbeats of ranks (parallel/heartbeat.py). One that has begun and stays away for longer
    than `limit` seconds is killed: it is stopped, or in a call that never ends and lets none of its threads run. Also
    gives those that have been killed."""
    ended, killed = threading.Event(), set[int]()
    with tempfile.TemporaryDirectory(prefix="eupmim-ranks-", ignore_cleanup_errors=True) as name:
        thread = threading.Thread(target=_watch, args=(Path(name), limit, ended, killed), daemon=True)
        thread.start()
        try:
            yield Path(name), killed
        finally:
            ended.set()
            thread.join()


def _watch(directory: Path, limit: float, ended: threading.Event, killed: set[int]) -> None:
    heard: dict[Path, tuple[int, float]] = {}
    looked = time.monotonic()
    while not ended.wait(POLL_SECONDS):
        if time.monotonic() - looked > limit / 2:
            heard.clear()  # this process was stopped too
        looked = time.monotonic()
        for file in directory.glob("rank-*[0-9]"):
            with suppress(OSError, ValueError, psutil.Error):  # a rank has just ended
                beat = file.stat().st_mtime_ns
                last, since = heard.setdefault(file, (beat, looked))
                if last != beat:
                    heard[file] = beat, looked
                elif looked - since > limit:
                    _kill(file, looked - since, killed)


def _kill(file: Path, silent: float, killed: set[int]) -> None:
    os.utime(file.parent)  # where this fails, the ranks could not have left a sign either
    number, _, place = file.read_text().partition(" ")
    file.unlink()
    process = psutil.Process(int(number))
    if os.getpid() in [parent.pid for parent in process.parents()]:  # else the rank has ended, and that is another
        killed.add(int(file.name.removeprefix("rank-")))
        process.kill()
        rank = file.name.replace("-", " ")
        typer.echo(f"{rank}: no sign of life for {silent:.0f} s, last {place}: killed", err=True)
