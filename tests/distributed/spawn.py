"""The one way tests start several ranks: gloo on loopback, one thread each, a hard timeout that kills."""

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

from tests.hosts.network import Host, enter

# Forked from a server that has imported what a rank needs, one starts in about 0.1 s instead of 5 s. The server
# imports and does nothing else, so there are no threads to lose in the fork.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "pytest",
        "torch.onnx",  # DDP imports it, and dynamo, when it is first made
        "torch._inductor.compile_fx",  # DeepSpeed's optimizers call torch.compile
        *(f"tests.distributed.{path.stem}" for path in Path(__file__).parent.glob("test_*.py")),
    ]
)


class Ranks:
    """`world_size` ranks that run one function after another, until the `with` block ends or a call fails.

    They start with the first call; after a failed one, which ends them, new ones start with the next.
    """

    def __init__(
        self,
        world_size: int,
        collective_timeout: int = 60,
        hosts: Sequence[Host] = (),
        endpoint: str = "node0",
        env: Mapping[str, str] | None = None,
    ) -> None:
        """On `hosts`, if given, as many ranks on each; rank 0 holds the store there, and `endpoint` is its host."""
        self.world_size, self.collective_timeout = world_size, collective_timeout
        self.hosts, self.endpoint, self.env = hosts, endpoint, env or {}
        self._pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        self._store: TCPStore | None = None

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, fn: Callable[..., Any], *args: Any, timeout: float = 60) -> list[Any]:
        """As `run_ranks`."""
        if not self.processes:
            self._start()
        work = pickle.dumps((fn, args))  # plainly: multiprocessing would put tensors into memory the ranks share
        try:
            for pipe in self._pipes:
                with suppress(BrokenPipeError):  # a rank that has died is found when its result is collected
                    pipe.send_bytes(work)
            return _collect(self._pipes, timeout)
        except BaseException:
            self._end()
            raise

    def _start(self) -> None:
        # Held by this process, as by torchrun's agent: no port to race for, and no rank's exit takes the store
        # away.
        if self.hosts:
            store = {"MASTER_ADDR": self.endpoint, "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "False"}
        else:
            self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port)}
        local_size = self.world_size // max(len(self.hosts), 1)
        for rank in range(self.world_size):
            env = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank % local_size),
                "WORLD_SIZE": str(self.world_size),
                "LOCAL_WORLD_SIZE": str(local_size),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "TORCHELASTIC_RESTART_COUNT": "0",
                "OMP_NUM_THREADS": "1",
                "EUPMIM_TIMEOUT_SECONDS": str(self.collective_timeout),
                **store,
                **self.env,
            }
            host = self.hosts[rank // local_size].pid if self.hosts else None
            ours, theirs = _context.Pipe()
            process = _context.Process(target=_rank, args=(theirs, env, host), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self._pipes, self.processes, self._store = [], [], None


def run_ranks(
    world_size: int,
    fn: Callable[..., Any],
    *args: Any,
    timeout: float = 60,
    collective_timeout: int | None = None,
) -> list[Any]:
    """Call `fn(*args)` on `world_size` ranks and return each rank's (picklable) result, in rank order.

    Each rank has the environment a launcher would set, and its process group exists: `fn` may use
    `torch.distributed` at once, and `init_world(cpu=True)` returns its World. `fn` must be a top-level
    function. Collectives fail after `collective_timeout` seconds (default: `timeout`).

    Raises:
        AssertionError: with the traceback of every rank that raised, or naming the ranks that died or were
            still running after `timeout` seconds; no process survives.
    """
    with Ranks(world_size, collective_timeout or max(1, round(timeout))) as ranks:
        return ranks.run(fn, *args, timeout=timeout)


def _rank(pipe: Connection, env: dict[str, str], host: int | None) -> None:
    os.environ.update(env)
    if host:
        enter(host)
    torch.set_num_threads(1)
    from eupmim_dist.parallel.world import init_world

    try:
        init_world(cpu=True)
        # Until killed or the test process is gone: an early exit would break slower ranks' connections.
        while (work := _received(pipe)) is not None:
            fn, args = pickle.loads(work)
            pipe.send_bytes(pickle.dumps((True, fn(*args))))
    except BaseException:
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))


def _received(pipe: Connection) -> bytes | None:
    try:
        return pipe.recv_bytes()
    except EOFError:
        return None


def _collect(pipes: list[Connection], timeout: float) -> list[Any]:
    deadline = time.monotonic() + timeout
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    pending = dict(enumerate(pipes))
    while pending and wait(pending.values(), max(0.0, deadline - time.monotonic())):
        for rank in [rank for rank, pipe in pending.items() if pipe.poll()]:
            try:
                succeeded, value = pickle.loads(pending.pop(rank).recv_bytes())
            except EOFError:
                succeeded, value = False, "died without a word"
            if succeeded:
                results[rank] = value
            else:
                failures[rank] = value
                # The others may be waiting for the failed one: let them tell, but not for long.
                deadline = min(deadline, time.monotonic() + 5)
    failures |= {rank: f"still running after {timeout} s" for rank in pending if not failures}
    if failures:
        raise AssertionError("".join(f"\nrank {rank}: {failures[rank]}" for rank in sorted(failures)))
    return [results[rank] for rank in range(len(pipes))]
