"""Runs `accelerate launch` in this process, again after a rank has died, and ends its ranks with it."""

import ctypes
import os
import signal
import socket
import time
from argparse import Namespace
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise

import typer

from eupmim_dist.cli.watch import MARGIN_SECONDS, watched_ranks
from eupmim_dist.errors import UserError

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
"""Signals that the launcher hands on to its ranks; its own exit code is then 128 + the signal's number."""

LAUNCHER_VARIABLE = "EUPMIM_LAUNCHER"
"""Tells ranks the launcher's process."""

SURVIVORS_SECONDS = 5
"""After a rank has died, what the others have to end; one that waits for the dead in C++ hears no signal."""

PATIENCE_SECONDS, MEETING_SECONDS = 5, 600
"""After which a node says that it waits for node 0, and gives up; torchrun waits as long for the others."""

ENDPOINT_SECONDS = 60
"""How much longer than a collective a node waits for node 0 to end an attempt that has failed here: ranks on GPUs may
see a lost one only by the collective's time limit."""

AGAIN = "a training goes on from its last checkpoint by the same command, or by itself with --max-restarts 3"
"""Told after a rank has died."""

UNSEEN = "was killed here, as it gave no sign of life"
FAILED_HERE = "node 0 has not yet ended the last attempt, which has failed here"


def end_with_launcher() -> None:
    """On a rank: the kernel kills it when its launcher is killed; it would write beside the next launch's ranks."""
    launcher = int(os.environ.get(LAUNCHER_VARIABLE, "0"))
    if launcher == os.getppid():
        set_parent_death_signal = 1  # prctl's name for it; only Linux has it
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    elif launcher:  # deepspeed's processes are in between, or it has gone already
        try:
            os.kill(launcher, 0)
        except ProcessLookupError:
            raise SystemExit(1) from None


def run_attempts(command: list[str], env: dict[str, str], max_restarts: int, grace: int) -> int:
    """Runs `accelerate launch`, again up to `max_restarts` times after a rank has died; the last one's exit code.

    `grace`: seconds from a signal to the launcher until ranks are killed. Raises UserError where accelerate refuses.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    from eupmim_dist.train.preemption import EXIT_CODE, SIGNALS

    # A user's mistake; asked to leave, in training or before it.
    final = {0, 2, EXIT_CODE, 128 + signal.SIGINT, *(-number for number in SIGNALS)}
    try:
        _await_node_0(command)
        death, code = _attempt(command, env, grace)
        for restart in range(1, max_restarts + 1):
            if code in final:
                break
            typer.echo(f"{death}: starting again, {restart} of {max_restarts}", err=True)
            _await_node_0(command)
            death, code = _attempt(command, env, grace)
    except SignalException as stopped:  # at any time: torchrun's handlers stay after its end
        typer.echo(f"stopped by {stopped.sigval.name}", err=True)
        return 128 + stopped.sigval
    if code >= 0:  # the rank has said why
        return code
    hint = ": out of memory?" if -code == signal.SIGKILL and UNSEEN not in death else ""
    typer.echo(f"error: {death}{hint}", err=True)
    if code not in final and not max_restarts:
        typer.echo(AGAIN, err=True)
    return 128 - code


def _death(rank: int, code: int, killed: set[int]) -> str:
    if rank in killed:
        return f"rank {rank} {UNSEEN}"
    return f"rank {rank} " + (f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with code {code}")


def _attempt(command: list[str], env: dict[str, str], grace: int) -> tuple[str, int]:
    """Runs `accelerate launch` in this process, so that its failure is an object and not a page of text.

    It ends in torch's `elastic_launch`, which alone would not read accelerate's configuration. torchrun's own restarts
    are not used: they restart after a mistake too.

    Returns how the rank that failed first ended, in words, and its exit code, which is negative if a signal killed it;
    nothing and 0 for success.
    """
    import logging

    import torch.distributed as dist
    from accelerate.commands import launch as accelerate_launch
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.api import PContext
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    from eupmim_dist.parallel.heartbeat import DIRECTORY_VARIABLE
    from eupmim_dist.parallel.world import collective_timeout
    from eupmim_dist.train.preemption import ANOTHER_FAILED

    debug = os.environ.get("EUPMIM_DEBUG") == "1"
    # Accelerate's own starts one process, and leaves it running when the launcher is told to stop. There is no option.
    accelerate_launch.simple_launcher = _run_alone
    # What torchrun gives the others once a rank has failed; its option (below) is for ranks that are asked to leave.
    PContext.close.__defaults__ = (ANOTHER_FAILED, SURVIVORS_SECONDS)
    try:
        if not debug:
            logging.disable(logging.CRITICAL)  # the ranks say what went wrong; elastic's report only repeats it
        args = accelerate_launch.launch_command_parser().parse_args(command)
        args.signals_to_handle = ",".join(number.name for number in FORWARDED)  # torchrun's, which accelerate fills in
        args.shutdown_timeout = grace  # the same; since torch 2.12
        args.log_dir = os.devnull  # the same; nothing is redirected, and an empty directory would stay in /tmp
        with (
            watched_ranks(collective_timeout() + MARGIN_SECONDS) as (heartbeats, killed),
            patch_environment(**env, **{LAUNCHER_VARIABLE: str(os.getpid()), DIRECTORY_VARIABLE: str(heartbeats)}),
        ):
            accelerate_launch.launch_command(args)
    except ChildFailedError as failed:
        if debug:
            typer.echo(str(failed), err=True)
        rank, failure = failed.get_first_failure()
        return _death(rank, failure.exitcode, killed), failure.exitcode
    except (
        ValueError,
        AssertionError,
        OSError,
        ImportError,
        RendezvousError,
        dist.DistError,
    ) as error:
        if debug:
            raise
        raise UserError(f"accelerate launch: {' '.join(str(error).split())}") from error
    finally:
        logging.disable(logging.NOTSET)
    return "", 0


def _await_node_0(command: list[str]) -> None:
    """On another node: waits until node 0 has opened its endpoint, for an attempt that no rank of this node was in."""
    options = dict(pairwise(command))
    node = options.get("--machine_rank", "0")
    if node == "0":
        return
    from eupmim_dist.parallel.world import collective_timeout

    host, port = options["--main_process_ip"].strip("[]"), int(options["--main_process_port"])
    started, told = time.monotonic(), False
    while reason := _not_ready(host, port, node):
        waited = time.monotonic() - started
        if waited > max(MEETING_SECONDS, collective_timeout() + ENDPOINT_SECONDS):
            mend = "start node 0 with it, and let its port through"
            mend = "end it there, and start all nodes again" if reason is FAILED_HERE else mend
            raise UserError(f"--rdzv-endpoint {host}:{port}: not there within {waited:.0f} s: {reason}; {mend}")
        if waited > PATIENCE_SECONDS and not told:
            told = True
            hint = "" if reason is FAILED_HERE else "; is node 0 started, with this endpoint?"
            typer.echo(f"waiting for {host}:{port}: {reason}{hint}", err=True)
        time.sleep(0.2)


def _not_ready(host: str, port: int, node: str) -> str:
    """Why node 0's endpoint is not to be met now; nothing if it is."""
    import torch.distributed as dist

    from eupmim_dist.parallel.board import JOINED

    try:
        socket.create_connection((host, port), timeout=5).close()  # a store's client would try for long
    except OSError as error:
        return error.strerror or str(error)
    try:
        store = dist.TCPStore(host, port, timeout=timedelta(seconds=5), wait_for_workers=False)
        joined = store.check([f"{JOINED}/{node}"])
    except dist.DistError:  # just gone, or no store: its ranks find out
        return ""
    return FAILED_HERE if joined else ""


def _run_alone(args: Namespace) -> None:
    """One process without torchrun, which would have it make a process group; started and ended as torchrun does."""
    from accelerate.utils import prepare_simple_launcher_cmd_env
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    (program, *words), env = prepare_simple_launcher_cmd_env(args)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = args.signals_to_handle  # as torchrun does
    rank = start_processes("rank", program, {0: tuple(words)}, {0: env}, DefaultLogsSpecs(args.log_dir))
    try:
        result = rank.wait(period=0.1)
    except SignalException as stopped:
        rank.close(stopped.sigval, args.shutdown_timeout)
        raise
    if result and result.is_failed():
        raise ChildFailedError("rank", result.failures)
