"""What ranks find out with each other through the store of the launcher: their clocks, and the run directory."""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from eupmim_dist.doctor.checks import clocks
from eupmim_dist.doctor.findings import Finding, failed, passed
from eupmim_dist.errors import listed
from eupmim_dist.telemetry.progress import in_bytes

Tell = Callable[[str, Callable[[], Any]], list[Any]]
"""`parallel.network.tell`: what a function returns on each rank, on all of them."""
ROUNDS = 3
PRECISION = 0.2
"""Seconds by which ranks may leave a meeting apart."""
PATIENCE = 5.0
"""Seconds that a file of another host has to appear: network file systems keep listings for some."""


def look_at_clocks(names: Sequence[str], tell: Tell) -> Finding:
    """Each rank looks at its clock right after all have met, a few times: the least difference counts."""
    tell("clocks", lambda: None)
    rounds = [tell(f"clocks/{number}", time.time) for number in range(ROUNDS)]
    offsets = [min((times[rank] - times[0] for times in rounds), key=abs) for rank in range(len(names))]
    return clocks(names, offsets, PRECISION)


def look_at_run_dir(run_dir: Path, rank: int, names: Sequence[str], tell: Tell) -> Finding:
    """Rank 0 makes the directory and a file, all look for that and write one of their own, rank 0 looks for these.

    Nothing of it is left.
    """
    what = "run directory"

    def begin() -> dict[str, Any]:
        if rank:
            return {}
        made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            token = f".doctor-{secrets.token_hex(4)}"
            (run_dir / token).touch()
        except OSError as error:
            return {"mistake": error.strerror or str(error)}
        free = f"{in_bytes(shutil.disk_usage(run_dir).free)} free"
        return {"token": token, "made": [str(folder) for folder in made], "free": free}

    def write() -> dict[str, Any]:
        shared = run_dir / started["token"]
        if _missing([shared]):
            return {"sees": False}
        try:
            shared.with_name(f"{shared.name}-{rank}").touch()
        except OSError as error:
            return {"sees": True, "mistake": error.strerror or str(error)}
        return {"sees": True}

    def collect() -> list[int]:
        files = {run_dir / f"{started['token']}-{other}": other for other in range(len(names))}
        return [] if rank else [files[file] for file in _missing(list(files))]

    def tidy_up() -> None:
        with suppress(OSError):
            (run_dir / f"{started['token']}-{rank}").unlink(missing_ok=True)

    started = tell("run directory", begin)[0]
    if "mistake" in started:
        return failed(what, f"{run_dir}, for {names[0]}: {started['mistake']}", "give a --run-dir that can be written")
    try:
        written = tell("run directory/written", write)
        blind = [names[other] for other, found in enumerate(written) if not found["sees"]]
        unable = [(names[other], found["mistake"]) for other, found in enumerate(written) if "mistake" in found]
        missing = [] if blind or unable else [names[other] for other in tell("run directory/seen", collect)[0]]
        tell("run directory/tidy", tidy_up)
    finally:
        tidy_up()
        if not rank:
            _remove(run_dir, started)
    share = "put it on storage that all hosts share (NFS, Lustre), under one path"
    if blind:
        return failed(what, f"{run_dir}: what {names[0]} writes is not seen by {listed(blind)}", share)
    if unable:
        return failed(what, f"{run_dir}, for {unable[0][0]}: {unable[0][1]}", "give a --run-dir that all can write")
    if missing:
        return failed(what, f"{run_dir}: {names[0]} does not see what was written by {listed(missing)}", share)
    return passed(what, f"{run_dir}: {'written' if len(names) == 1 else 'seen and written by all'}; {started['free']}")


def _missing(files: Sequence[Path]) -> list[Path]:
    """Of files of one directory those that do not appear in its listing."""
    deadline, missing = time.monotonic() + PATIENCE, list(files)
    while True:
        with suppress(OSError):
            there = set(os.listdir(files[0].parent))
            missing = [file for file in files if file.name not in there]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.05)


def _remove(run_dir: Path, started: dict[str, Any]) -> None:
    with suppress(OSError):
        (run_dir / started["token"]).unlink(missing_ok=True)
        for folder in started["made"]:  # the innermost first; only what is empty
            Path(folder).rmdir()
