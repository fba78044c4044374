"""`bench gpu`: everything that can go wrong on a device, a check at a time, each in a process of its own."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

from eupmim_dist.bench.gpu.sizes import Figures

CODE = (
    "import json, sys; from pathlib import Path; from eupmim_dist.bench.gpu.check import make\n"
    "make(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))"
)

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a pod of several may be started with; a check is a process alone."""


ABREAST = max(1, (os.cpu_count() or 1) // 4)
"""Checks at a time that time nothing: they wait for the processor, not for the GPU."""
_THREADS = str(max(1, (os.cpu_count() or 1) // (2 * ABREAST)))
SHARED = {"OMP_NUM_THREADS": _THREADS, "TORCHINDUCTOR_COMPILE_THREADS": _THREADS}
"""What such a check is started with: as many threads each as there are processors would be in each other's way."""


@dataclass(frozen=True)
class Check:
    """A function of (place, sizes) in a module of this package, and the seconds that it may take.

    `timed`: what it measures needs the machine for itself.
    """

    module: str
    function: str
    limit: int
    timed: bool = False


CHECKS = {
    "machine": Check("kernels", "machine", 60, timed=True),
    "curves": Check("training", "curves_agree", 180),
    "groups": Check("program", "one_rank_groups", 180),
    "ranking": Check("ranking", "same_lists", 150),
    "resume": Check("program", "killed_and_resumed", 150),
    "compiled": Check("training", "compiled_alike", 150),
    "attention": Check("kernels", "attention", 60),
    "large tables": Check("kernels", "large_tables", 60),
    "same bits": Check("training", "same_bits", 60),
    "no waiting": Check("training", "no_waiting", 60),
    "speed": Check("training", "speed", 120, timed=True),
    "tables": Check("kernels", "table_speed", 90, timed=True),
    "fused speed": Check("training", "speed_of_fused", 150, timed=True),
    "evaluation": Check("ranking", "evaluation_speed", 120, timed=True),
    "several GPUs": Check("program", "several_gpus", 180, timed=True),
}
"""In order: what is wrong matters before what is slow, and of what runs side by side the longest comes first."""


@dataclass(frozen=True)
class Outcome:
    """What became of a check. FAIL: it found something wrong; LATE: there was no time left to begin it."""

    name: str
    verdict: Literal["PASS", "FAIL", "SKIP", "LATE"]
    seconds: float
    figures: Figures = field(default_factory=dict)
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def run_checks(place: Path, names: Sequence[str], seconds: float) -> Iterator[Outcome]:
    """The outcomes as they come; `place` holds the store that is trained on.

    No check begins once `seconds` are over, and none runs longer than what is then left.
    """
    until = time.monotonic() + seconds
    for timed, group in groupby(names, lambda name: CHECKS[name].timed):
        yield from _abreast(deque(group), place, until, 1 if timed else ABREAST)


def _abreast(waiting: deque[str], place: Path, until: float, most: int) -> Iterator[Outcome]:
    running: list[_Process] = []
    try:
        while waiting or running:
            while waiting and len(running) < most:
                name, left = waiting.popleft(), until - time.monotonic()
                if left < 5:
                    yield Outcome(name, "LATE", 0.0, reason="no time was left")
                else:
                    running.append(_Process(name, place, min(left, CHECKS[name].limit)))
            for process in [process for process in running if process.over()]:
                running.remove(process)
                yield process.outcome()
            time.sleep(0.05)
    finally:
        for process in running:
            process.end()


class _Process:
    """A check under way in a process of its own."""

    def __init__(self, name: str, place: Path, limit: float) -> None:
        self.name, self.limit = name, limit
        scratch = place / name.replace(" ", "-")
        scratch.mkdir()
        (scratch / "store").symlink_to(place / "store")
        self.file, self.log = scratch / "outcome.json", scratch / "output.txt"
        outside = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
        self.started = time.monotonic()
        with self.log.open("w") as stream:
            # Its own group: what a check has started must not outlive it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, name, str(scratch), str(self.file)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**outside, **({} if CHECKS[name].timed else SHARED)},
            )

    def over(self) -> bool:
        return self.process.poll() is not None or time.monotonic() > self.started + self.limit

    def outcome(self) -> Outcome:
        code, taken = self.process.poll(), time.monotonic() - self.started
        self.end()
        if self.file.exists():
            found = json.loads(self.file.read_text())
            return Outcome(self.name, found["verdict"], taken, found["figures"], found["reason"])
        ended = f"not done after {self.limit:.0f} s" if code is None else f"ended with {code}"
        return Outcome(self.name, "FAIL", taken, reason=f"{ended}: {self.log.read_text()[-2000:].strip()}")

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def make(name: str, place: Path, file: Path) -> None:
    """Makes one check in this process and writes what it found."""
    from eupmim_dist.bench.gpu.sizes import NotHere, Wrong, sizes_for
    from eupmim_dist.parallel.world import init_world

    check = CHECKS[name]
    figures: Figures = {}
    verdict, reason = "PASS", ""
    try:
        module = importlib.import_module(f"eupmim_dist.bench.gpu.{check.module}")
        figures = getattr(module, check.function)(place, sizes_for(init_world().device))
    except NotHere as nothing:
        verdict, reason = "SKIP", str(nothing)
    except Wrong as wrong:
        verdict, reason, figures = "FAIL", str(wrong), wrong.figures
    except AssertionError as wrong:
        verdict, reason = "FAIL", str(wrong)
    file.write_text(json.dumps({"verdict": verdict, "figures": figures, "reason": reason}))
