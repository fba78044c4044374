"""Which processors a CPU rank computes on: one of its own, where a node has as many as ranks.

Where ranks have all processors in common, the thread in which gloo receives for a waiting rank may find itself behind
another rank's work, and the wait ends with that one's time slice.
"""

import os
from contextlib import suppress

BINDINGS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Variables by which users say where threads are to run."""
_before: set[int] | None = None
"""What this process could use before it kept to one."""


def available() -> set[int]:
    """Those that this process may use, or could before it kept to one."""
    if _before is not None:
        return _before
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def of_each_rank(local_size: int) -> int:
    """How many a rank of this node has for its threads."""
    return max(1, len(available()) // local_size)


def keep_to_one(local_rank: int, local_size: int) -> None:
    """Has this thread, and those that it will start, use one processor of the node's alone.

    Only where there are as many as ranks, of a thread each, which is what was measured (docs/launching.md): the system
    finds free ones better where there are more. And only where torchrun's agent, which is accelerate's and `launch`'s
    too, has counted the ranks and given this one what it has itself, and the user has said nothing by BINDINGS.
    """
    global _before
    mine = available()
    fits = 1 < local_size == len(mine) and os.environ.get("OMP_NUM_THREADS") == "1"
    said = "TORCHELASTIC_RUN_ID" not in os.environ or any(os.environ.get(name) for name in BINDINGS)
    if _before is None and fits and not said:
        with suppress(AttributeError, OSError):  # not on every system, and a sandbox may forbid it
            if os.sched_getaffinity(os.getppid()) == mine:
                os.sched_setaffinity(0, {sorted(mine)[local_rank]})
                _before = mine
