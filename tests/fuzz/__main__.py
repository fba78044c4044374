"""The fuzzing: `make fuzz`, or `python -m tests.fuzz --cases 20000 --seed 1 --jobs 2`. Exit code 1 on a bad answer.

Changes one of many small artifacts, settings, paths or numbers, and runs the command lines that meet it. A good answer
is exit 0 with finite results, or exit 2 with at most four short lines and nothing left behind, within 20 s and 2 GB.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", POLARS_MAX_THREADS="1", COLUMNS="100")  # before the libraries read them

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.artifacts import make_artifacts
from tests.fuzz.cases import Outcome, chosen_cases, run_case, run_cases
from tests.fuzz.report import Tally
from tests.fuzz.running import load_program


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20000, help="drawn by chance, after those chosen by hand")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="cases that run at a time")
    parser.add_argument("--chosen", type=int, default=100, help="at most so many of each kind of those chosen by hand")
    parser.add_argument("--case", action="append", default=[], help="only this one, by number or name; tells all of it")
    parser.add_argument("--kinds", default="abcdefg", help="only these kinds of changes")
    parser.add_argument("--keep", type=Path, help="move the directories of bad cases here")
    parser.add_argument("--report", type=Path, help="write the bad answers to this file too")
    asked = parser.parse_args()
    load_program()
    memory = Path("/dev/shm")  # where each fsync costs nothing
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
    beside = asked.keep or (memory if os.access(memory, os.W_OK) else None)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=beside) as directory:
        place = Path(directory)
        make_artifacts(place / "base")
        if asked.case:
            return max(_told(name, asked.seed, place, asked.keep) for name in asked.case)
        names = [name for name in chosen_cases(asked.chosen) if name[0] in asked.kinds]
        names += [str(n) for n in range(asked.cases) if "abcdefg"[n % 7] in asked.kinds]
        tally = Tally(len(names))
        for outcome in run_cases(names, asked.seed, place, asked.jobs, asked.keep):
            tally.add(outcome)
        tally.find_places(lambda name: run_case(name, asked.seed, place, None, debug=True))
    text = tally.text()
    print(text, end="", flush=True)
    if asked.report:
        asked.report.write_text(text, encoding="utf-8", errors="backslashreplace")
    return 1 if tally.groups else 0


def _told(name: str, seed: int, place: Path, keep: Path | None) -> int:
    """One case: as it was answered and, if badly, with tracebacks."""
    outcome = run_case(name, seed, place, keep)
    print(f"case {name}: {outcome.what}")
    _show(outcome)
    print("\n".join(f"bad: {kind} {detail}" for kind, detail in outcome.bad) or "answered well")
    if outcome.bad:
        print("\nagain, with --debug")
        _show(run_case(name, seed, place, None, debug=True))
    return 1 if outcome.bad else 0


def _show(outcome: Outcome) -> None:
    for ended in outcome.ended:
        print(f"$ {outcome.line(ended)}\n{ended.error}", end="")
        print(f"exit code {ended.code}, {ended.seconds:.1f} s, {ended.memory / 1e6:+,.0f} MB")


sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
sys.exit(main())
