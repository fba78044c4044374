"""A thread that tells the others what this rank is at, also while the main one waits in a call of a device or network.

So a rank that is stuck is told from a slow one and from one that is gone, when the others give it up; and it does not
outlive them: its thread ends the process. A place is the innermost line of this program that the main thread is in.
"""

import faulthandler
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from eupmim_dist.parallel import network
from eupmim_dist.parallel.patience import Deadline, in_time

SECONDS = 10.0
"""Between beats, at the most."""
LEAVING_SECONDS = 10.0
"""What a rank that has been given up has to leave by itself."""
TRACES_SECONDS = 5.0
"""For what is written of a failure; a file system may be what is stuck."""
DESCRIBED = 3
"""Ranks whose places a message names."""
DIRECTORY_VARIABLE = "EUPMIM_HEARTBEATS"
"""Where ranks leave a file, each with its process and what it is at, for the launcher of their node (cli/watch.py)."""
RECORDERS = {"_dump_fr_trace_json": "collectives", "_dump_nccl_trace_json": "nccl"}
"""Torch's flight recorders, and the name of what each knows: of gloo's collectives and of NCCL's."""
TRACES = "stuck"
"""Directory of a run with what ranks were at; where there is no run, part of the name of a temporary one."""
PACKAGE = Path(__file__).parents[1]


class Heartbeat:
    """Of this rank."""

    def __init__(self, store: dist.Store, rank: int, timeout: float) -> None:
        """Of the work of the calling thread; `timeout` is that of collectives."""
        self.store, self.rank, self.timeout = store, rank, timeout
        self.step: int | None = None
        self.region = ""
        """The outermost of what ranks do together (`agreed`) that this one is in; outside it may go on alone."""
        self.run_dir: Path | None = None
        self._working, self._ended = threading.get_ident(), threading.Event()
        self._since, self._place = time.monotonic(), ""
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(1)

    def traces(self) -> str:
        """Writes what this rank is at, and says where: the stacks of threads, and what torch's flight recorder knows of
        collectives."""
        with suppress(Exception):  # what there is to be told matters more
            return f"; see {in_time(Deadline(TRACES_SECONDS), 0, self._write_traces)}"
        return ""

    def _write_traces(self) -> Path:
        if self.run_dir is None:  # a directory of its own: nobody else has laid anything there
            place = Path(tempfile.mkdtemp(prefix=f"eupmim-{TRACES}-"))
        else:
            place = self.run_dir / TRACES
            place.mkdir(parents=True, exist_ok=True)
        with (place / f"rank-{self.rank}.stacks.txt").open("w") as file:
            faulthandler.dump_traceback(file)
        for recorder, name in RECORDERS.items():
            if dump := getattr(torch._C._distributed_c10d, recorder, None):  # torch without NCCL has none of it
                (place / f"rank-{self.rank}.{name}.json").write_bytes(dump(True, False))
        return place

    def _beat(self) -> None:
        heard, step = time.monotonic(), self.step
        while not self._ended.is_set():
            if step != self.step:  # the others take part in it, whatever has become of the store
                heard, step = time.monotonic(), self.step
            sample, given_up = self._sample(), ""
            told = json.dumps([_clock(), sample])
            self._tell_launcher(sample)
            with suppress(
                Exception
            ):  # the store's host, or who holds it, may have gone; a thread that ends looks like a dead rank
                given_up = in_time(Deadline(0), 2 * SECONDS, partial(self._tell, told))
                heard = time.monotonic()
            if given_up and given_up == self.region and not self._ended.wait(LEAVING_SECONDS):
                if given_up == self.region:
                    self._end_process("have given it up")
            elif self.region and (silence := time.monotonic() - heard) > self.timeout + LEAVING_SECONDS:
                self._end_process(f"have been out of reach for {silence:.0f} s")
            self._ended.wait(_interval(self.timeout))

    def _sample(self) -> str:
        """Where the work is, and since when."""
        place = "" if self.step is None else f"in step {self.step}, "
        place += f"at {_place(self._working)}"
        if place != self._place:
            self._since, self._place = time.monotonic(), place
        return f"{place}, for {time.monotonic() - self._since:.0f} s"

    def _tell_launcher(self, sample: str) -> None:
        if directory := os.environ.get(DIRECTORY_VARIABLE):
            file = Path(directory) / f"rank-{self.rank}"
            try:
                file.with_suffix(".new").write_text(f"{os.getpid()} {sample}")
                file.with_suffix(".new").replace(file)
            except OSError:  # a full disk takes no text, but a time
                with suppress(OSError):
                    os.utime(file)

    def _tell(self, told: str) -> str:
        """Returns the region in which this rank has been given up."""
        self.store.set(_at(self.rank), told)
        key = _given_up(self.rank)
        return self.store.get(key).decode() if self.store.check([key]) else ""

    def _end_process(self, others: str) -> None:
        line = f"error: {network.named(self.rank)}: {self._sample()}; the others {others}: ended{self.traces()}\n"
        with suppress(OSError):
            os.write(2, line.encode())
        os._exit(1)


_mine: list[Heartbeat] = []
_begun = 0.0


def _clock() -> float:
    """Seconds since the ranks found each other, alike on all hosts whatever time it is there."""
    return time.monotonic() - _begun


def begin(store: dist.Store, rank: int, timeout: float) -> None:
    """From now on; on all ranks at once, as they have found each other."""
    global _begun
    _begun = time.monotonic()
    _mine[:] = [Heartbeat(store, rank, timeout)]
    _mine[0].start()


def mine() -> Heartbeat | None:
    """None where there is one rank."""
    return _mine[0] if _mine else None


def reached(step: int | None) -> None:
    """The step that is begun; None after the last one."""
    for heartbeat in _mine:
        heartbeat.step = step


def described(store: dist.Store, ranks: list[int], timeout: float) -> dict[int, str]:
    """What the first of some ranks that give no answer last told of themselves, by rank."""
    found = {}
    for rank in ranks[:DESCRIBED]:
        if store.check([_at(rank)]):
            at, place = json.loads(store.get(_at(rank)))
            silent = _clock() - at
            alive = silent < 3 * _interval(timeout)
            found[rank] = f"; alive, {place}" if alive else f"; silent for {silent:.0f} s, last {place}"
    return found


def give_up(store: dist.Store, ranks: list[int], region: str) -> None:
    """Has ranks end that others have waited for in vain in a region, should they not by themselves."""
    for rank in ranks:
        store.set(_given_up(rank), region)


def _interval(timeout: float) -> float:
    return min(SECONDS, timeout / 4)


def _at(rank: int) -> str:
    return f"eupmim/heartbeat/{rank}"


def _given_up(rank: int) -> str:
    return f"eupmim/given_up/{rank}"


def _place(thread: int) -> str:
    frame: FrameType | None = sys._current_frames().get(thread)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            return f"{file.relative_to(PACKAGE)}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "a place outside of this program"
