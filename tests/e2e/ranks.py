"""`eupmim-dist` with one more subcommand, `rank`, that a test of `launch` has its ranks run.

`python -m tests.e2e.ranks launch -- rank WHAT` is the real command line otherwise.
"""

import os
import signal
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from eupmim_dist.cli import launch
from eupmim_dist.cli.app import app, main
from eupmim_dist.errors import UserError
from eupmim_dist.parallel.agreement import agreed
from eupmim_dist.parallel.world import init_world, shutdown
from eupmim_dist.train import loop
from eupmim_dist.train.state import Run


def rank(what: str) -> None:
    world = init_world()
    if what == "report":
        total = torch.ones(1, device=world.device)
        if world.size > 1:
            dist.all_reduce(total)
        threads, precision = (os.environ.get(name) for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION"))
        line = f"rank {world.rank}/{world.size} {world.device.type} {int(total)} {threads} {precision}\n"
        sys.stdout.write(line)  # in one piece: the other ranks write to the same place
    elif what == "mistake":
        with agreed(world):
            if world.rank == world.size - 1:
                raise UserError("data.yaml: no such key")
    elif what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        dist.barrier()
        if world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(1, b"ready\n")
        time.sleep(60)
    elif what == "killed" and world.rank == world.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    elif what in ("killed", "sleep"):
        os.write(1, b"ready\n")  # print may write the line end apart
        time.sleep(60)
    elif what == "slow":
        signal.signal(signal.SIGTERM, lambda *_: (time.sleep(3), os.write(1, b"left\n"), os._exit(0)))
        os.write(1, b"ready\n")
        time.sleep(60)
    elif what == "exit":
        raise SystemExit(7)
    shutdown(world)


def break_step(step: int) -> None:
    """Has the last rank alone fail in the middle of a step."""
    train_step = loop.train_step

    def broken(run: Run, number: int, *args: Any) -> Any:
        if number == step and run.world.rank == run.world.size - 1:
            raise MemoryError("no room for it")
        return train_step(run, number, *args)

    loop.train_step = broken


if __name__ == "__main__":
    if step := os.environ.get("BREAK_STEP"):
        break_step(int(step))
    launch.MODULE = "tests.e2e.ranks"
    app.command("rank")(rank)
    main()
