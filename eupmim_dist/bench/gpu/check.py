"""`bench gpu`: everything that can go wrong on a device, a check at a time, each in a process of its own."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from eupmim_dist.bench.gpu.sizes import Figures

CODE = (
    "import json, sys; from pathlib import Path; from eupmim_dist.bench.gpu.check import make\n"
    "make(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))"
)

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a pod of several may be started with; a check is a process alone."""


@dataclass(frozen=True)
class Check:
    """A function of (place, sizes) in a module of this package, and the seconds that it may take."""

    module: str
    function: str
    limit: int


CHECKS = {
    "machine": Check("kernels", "machine", 60),
    "attention": Check("kernels", "attention", 60),
    "large tables": Check("kernels", "large_tables", 60),
    "curves": Check("training", "curves_agree", 150),
    "same bits": Check("training", "same_bits", 60),
    "no waiting": Check("training", "no_waiting", 60),
    "groups": Check("program", "one_rank_groups", 120),
    "resume": Check("program", "killed_and_resumed", 90),
    "ranking": Check("ranking", "same_lists", 90),
    "speed": Check("training", "speed", 120),
    "tables": Check("kernels", "table_speed", 90),
    "evaluation": Check("ranking", "evaluation_speed", 120),
    "several GPUs": Check("program", "several_gpus", 180),
}
"""In order: what is wrong matters before what is slow."""


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
    """The outcomes one by one; `place` holds the store that is trained on.

    No check begins once `seconds` are over, and none runs longer than what is then left.
    """
    until = time.monotonic() + seconds
    for name in names:
        left = until - time.monotonic()
        if left < 5:
            yield Outcome(name, "LATE", 0.0, reason="no time was left")
            continue
        yield _in_a_process(name, place, min(left, CHECKS[name].limit))


def _in_a_process(name: str, place: Path, limit: float) -> Outcome:
    scratch = place / name.replace(" ", "-")
    scratch.mkdir()
    (scratch / "store").symlink_to(place / "store")
    file, log = scratch / "outcome.json", scratch / "output.txt"
    started = time.monotonic()
    with log.open("w") as stream:
        # Its own group: what a check has started must not outlive it.
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, name, str(scratch), str(file)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name not in LAUNCHED},
        )
        try:
            process.wait(limit)
            ended = f"ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"not done after {limit:.0f} s"
        finally:
            _end_group(process)
    taken = time.monotonic() - started
    if file.exists():
        found = json.loads(file.read_text())
        return Outcome(name, found["verdict"], taken, found["figures"], found["reason"])
    return Outcome(name, "FAIL", taken, reason=f"{ended}: {log.read_text()[-2000:].strip()}")


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def make(name: str, place: Path, file: Path) -> None:
    """Makes one check in this process and writes what it found."""
    from eupmim_dist.bench.gpu.sizes import NotHere, sizes_for
    from eupmim_dist.parallel.world import init_world

    check = CHECKS[name]
    figures: Figures = {}
    verdict, reason = "PASS", ""
    try:
        module = importlib.import_module(f"eupmim_dist.bench.gpu.{check.module}")
        figures = getattr(module, check.function)(place, sizes_for(init_world().device))
    except NotHere as nothing:
        verdict, reason = "SKIP", str(nothing)
    except AssertionError as wrong:
        verdict, reason = "FAIL", str(wrong)
    file.write_text(json.dumps({"verdict": verdict, "figures": figures, "reason": reason}))
