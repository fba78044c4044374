"""Which processors a CPU rank computes on: those of a node's ranks are kept apart.

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
    """Has this process, and the threads that it will start, use its part of the node's processors only.

    Only where each rank can have one but not two: with more, the system finds a free one for any thread, and knows
    better which are near or fast. Nor on systems other than Linux, or where somebody has said what is to run where: the
    user by one of BINDINGS, or who has started this process by giving it other processors than its own.
    """
    mine = sorted(available())
    tight = 1 < local_size <= len(mine) < 2 * local_size
    said = _is_bound() or any(os.environ.get(name) for name in BINDINGS)
    if tight and not said and hasattr(os, "sched_setaffinity"):
        first, stop = (number * len(mine) // local_size for number in (local_rank, local_rank + 1))
        os.sched_setaffinity(0, mine[first:stop])


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
