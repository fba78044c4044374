"""Starts the server that ranks are forked from while pytest collects."""

from multiprocessing import forkserver

from tests.distributed import spawn  # noqa: F401  # which says what it imports

forkserver.ensure_running()
