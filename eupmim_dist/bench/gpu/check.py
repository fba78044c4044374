"""`bench gpu`: everything that can go wrong on a device, a check at a time, each in a process of its own."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

import psutil

from eupmim_dist.bench.gpu.sizes import Figures

CODE = (
    "import json, sys; from pathlib import Path; from eupmim_dist.bench.gpu.check import make\n"
    "make(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))"
)

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a pod of several may be started with; a check is a process alone."""


ABREAST = max(1, (os.cpu_count() or 1) // 4)
"""Checks at a time that time nothing: they wait for the processor, not for the GPU."""
SHARED = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // (2 * ABREAST)))}
"""What such a check is started with: as many threads each as there are processors would be in each other's way."""


WORTH_BEGINNING = 5.0
"""Seconds: a check that has fewer left does not begin."""


@dataclass(frozen=True)
class Check:
    """A function of (place, sizes, figures) in a module of this package, and the seconds that it may take.

    It adds to `figures` what it finds, as it finds it; what is wrong it raises as an AssertionError, what cannot be
    checked here as NotHere. `timed`: what it measures needs the machine for itself. `gpus`: as many at least.
    """

    module: str
    function: str
    limit: int
    timed: bool = False
    gpus: int = 0


CHECKS = {
    "machine": Check("kernels", "machine", 60, timed=True),
    "groups": Check("program", "one_rank_groups", 300),
    "compiled": Check("training", "compiled_alike", 240, gpus=1),
    "curves": Check("training", "curves_agree", 180),
    "ranking": Check("ranking", "same_lists", 150),
    "resume": Check("program", "killed_and_resumed", 150),
    "no samples": Check("training", "no_samples", 120),
    "attention": Check("kernels", "attention", 60),
    "large tables": Check("kernels", "large_tables", 60),
    "same bits": Check("training", "same_bits", 60),
    "no waiting": Check("training", "no_waiting", 60, gpus=1),
    "several GPUs": Check("program", "several_gpus", 300, timed=True, gpus=2),
    "speed": Check("training", "speed", 120, timed=True),
    "tables": Check("kernels", "table_speed", 90, timed=True),
    "fused speed": Check("training", "speed_of_fused", 150, timed=True, gpus=1),
    "evaluation": Check("ranking", "evaluation_speed", 120, timed=True),
}
"""In order: what is wrong matters before what is slow, and of what runs side by side the longest comes first."""


@dataclass(frozen=True)
class Outcome:
    """What became of a check. FAIL: it found something wrong; LATE: there was no time left to begin or to end it."""

    name: str
    verdict: Literal["PASS", "FAIL", "SKIP", "LATE"]
    seconds: float
    figures: Figures = field(default_factory=dict)
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def run_checks(place: Path, names: Sequence[str], seconds: float, gpus: int) -> Iterator[Outcome]:
    """The outcomes as they come; `place` holds the store that is trained on, `gpus` is how many there are.

    No check begins once `seconds` are over, and none runs longer than what is then left.
    """
    until = time.monotonic() + seconds
    for timed, group in groupby(names, lambda name: CHECKS[name].timed):
        here = []
        for name in group:
            if gpus < CHECKS[name].gpus:
                yield Outcome(name, "SKIP", 0.0, reason=f"needs {CHECKS[name].gpus} GPUs or more, here are {gpus}")
            else:
                here.append(name)
        yield from _abreast(deque(here), place, until, 1 if timed else ABREAST)


def _abreast(waiting: deque[str], place: Path, until: float, most: int) -> Iterator[Outcome]:
    running: list[_Process] = []
    try:
        while waiting or running:
            while waiting and len(running) < most:
                name, left = waiting.popleft(), until - time.monotonic()
                if left < WORTH_BEGINNING:
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
                env={**outside, **({} if CHECKS[name].timed else SHARED), "EUPMIM_DEBUG": "1"},  # where, if one fails
            )

    def over(self) -> bool:
        return self.process.poll() is not None or time.monotonic() > self.started + self.limit

    def outcome(self) -> Outcome:
        code, taken = self.process.poll(), time.monotonic() - self.started
        self.end()
        found = json.loads(self.file.read_text()) if self.file.exists() else {"figures": {}, "verdict": None}
        if found["verdict"] is not None and code == 0:
            return Outcome(self.name, found["verdict"], taken, found["figures"], found["reason"])
        late = code is None and self.limit < CHECKS[self.name].limit
        ended = f"not done after {self.limit:.0f} s" if code is None else f"ended with {code}"
        reason = f"{ended}: {self.log.read_text()[-2000:].strip()}"
        return Outcome(self.name, "LATE" if late else "FAIL", taken, found["figures"], reason)

    def end(self) -> None:
        end(self.process)


def end(process: subprocess.Popen) -> None:
    """Kills a process, the group that it leads, if so, and all it has started: torchrun's workers lead groups too."""
    started: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for each in started:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(started, timeout=2)


def make(name: str, place: Path, file: Path) -> None:
    """Makes one check in this process and writes what it found; meanwhile each second what it has found so far."""
    from eupmim_dist.bench.gpu.sizes import NotHere, sizes_for
    from eupmim_dist.parallel.world import init_world

    check = CHECKS[name]
    figures: Figures = {}
    over = threading.Event()

    def write(verdict: str | None, reason: str) -> None:
        whole = file.with_suffix(".part")
        whole.write_text(json.dumps({"verdict": verdict, "figures": figures, "reason": reason}))
        whole.replace(file)

    def keep_written() -> None:
        while not over.wait(1.0):
            with suppress(RuntimeError):  # something was added meanwhile
                write(None, "")

    keeper = threading.Thread(target=keep_written)
    keeper.start()
    verdict, reason = "PASS", ""
    try:
        module = importlib.import_module(f"eupmim_dist.bench.gpu.{check.module}")
        getattr(module, check.function)(place, sizes_for(init_world().device), figures)
    except NotHere as nothing:
        verdict, reason = "SKIP", str(nothing)
    except AssertionError as wrong:
        verdict, reason = "FAIL", str(wrong)
    except Exception:  # whatever it is, what was found before it is kept
        verdict, reason = "FAIL", traceback.format_exc()
    finally:
        over.set()
        keeper.join()
    write(verdict, reason)
