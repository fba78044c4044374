"""File descriptors: each connection of a rank to another takes one."""

import os
import resource
import socket
from contextlib import suppress

from eupmim_dist.errors import UserError

OTHERS = 100
"""Files, pipes and connections of a rank that do not depend on how many there are."""


def needed(size: int) -> int:
    """By one of `size` ranks, at the most: docs/launching.md has what was measured."""
    meshes = 3 + (os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("1", "true", "yes"))
    store = size  # rank 0's process may hold it
    return meshes * (size + 3) + store + OTHERS


def allow(size: int) -> None:
    """Has the system allow this process as many as one of `size` ranks needs, or as it may."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _fewer(allowed, wanted := needed(size)):
        with suppress(OSError, ValueError):  # a system may have a limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (most if _fewer(most, wanted) else wanted, most))


def check(size: int) -> None:
    """Raises UserError where the system does not allow that many."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _fewer(allowed, wanted := needed(size)):
        raise UserError(
            f"{socket.gethostname()}: a process may open {allowed} files, and each of {size} ranks needs {wanted}, "
            f"mostly as connections to the others: raise the limit on all hosts (`ulimit -n {wanted}`; as root "
            "limits.conf, or LimitNOFILE= of a service), or start fewer ranks"
        )


def _fewer(limit: int, wanted: int) -> bool:
    return limit != resource.RLIM_INFINITY and limit < wanted
