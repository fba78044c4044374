"""Which processors a CPU rank computes on: one each, where a node has as many as ranks.

Where ranks have all processors in common, the thread in which gloo receives for a waiting rank may find itself behind
another rank's work, and the wait ends with that one's time slice.
"""

import os
from contextlib import suppress

BINDINGS = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Variables by which users say where threads are to run."""


def available() -> set[int]:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def keep_to_share(local_rank: int, local_size: int) -> None:
    """Has this thread, and those that it will start, use one processor of the node's alone.

    Only where there are as many as ranks, of a thread each, which is what was measured (docs/launching.md): the system
    finds free ones better where there are more. Nor on systems other than Linux, or where somebody has said what is to
    run where: the user by one of BINDINGS, or who has started this process by giving it other processors than its own.
    """
    mine = sorted(available())
    fits = 1 < local_size == len(mine) and local_rank < local_size and os.environ.get("OMP_NUM_THREADS", "1") == "1"
    said = _is_bound() or any(os.environ.get(name) for name in BINDINGS)
    if fits and not said and hasattr(os, "sched_setaffinity"):
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setaffinity(0, {mine[local_rank]})


def of_each_rank(local_size: int) -> int:
    """How many a rank of this node has for its threads."""
    return max(1, of_node(local_size) // local_size)


def of_node(local_size: int) -> int:
    """How many the ranks of this node have together, if each has as many as this one."""
    return len(available()) * (local_size if _is_bound() else 1)


def _is_bound() -> bool:
    """Whether this process may use other processors than the one that started it."""
    with suppress(AttributeError, OSError):
        return os.sched_getaffinity(os.getppid()) != os.sched_getaffinity(0)
    return False
