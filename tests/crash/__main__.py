"""The crash test: `make crash-test`, or `python -m tests.crash --kills 20 --seed 1`. Exit code 1 on a difference."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.crash.killing import Kill, Setting, differences, kill_and_finish, train_through
from tests.stores import small_store

COLUMNS = "{:>4}  {:<10}  {:>6}  {:<8}  {:>8}  {:<7}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of each of the two trainings")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place, found = Path(directory), []
        setting = Setting(small_store(place / "store", num_users=1000, num_items=600).path, steps=asked.steps)
        print(f"{setting.steps} steps on 2 ranks, a checkpoint every {setting.save_every}, uninterrupted", flush=True)
        train_through(setting, place / "whole")
        for asynchronous in (False, True):
            print(f"\nkilled {asked.kills} times, seed {asked.seed}, checkpoint.asynchronous={asynchronous}")
            print(COLUMNS.format("kill", "while", "step", "victim", "ended in", "by"), flush=True)
            run_dir = place / f"killed-{asynchronous}"
            random_ = random.Random(f"{asked.seed} {asynchronous}")
            kill_and_finish(setting, run_dir, asked.kills, random_, asynchronous, told=show)
            found += (different := differences(place / "whole", run_dir))
            print("\n".join(different) or "equal to the uninterrupted training, bit for bit", flush=True)
    return 1 if found else 0


def show(number: int, kill: Kill) -> None:
    again = "command" if kill.victim == "launcher" else "launch"
    print(COLUMNS.format(number, kill.phase, kill.step, kill.victim, f"{kill.seconds:.1f} s", again), flush=True)


sys.exit(main())
