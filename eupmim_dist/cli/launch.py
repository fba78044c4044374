"""`eupmim-dist launch`: any subcommand on several ranks, through accelerate's own launcher."""

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import time
from argparse import Namespace
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from eupmim_dist.errors import UserError

MODULE = "eupmim_dist"

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
"""Signals that the launcher hands on to its ranks; its own exit code is then 128 + the signal's number."""

LAUNCHER_VARIABLE = "EUPMIM_LAUNCHER"
"""Tells ranks the launcher's process."""

SURVIVORS_SECONDS = 5
"""After a rank has died, what the others have to end; one that waits for the dead in C++ hears no signal."""

ENDPOINT_SECONDS = 30
"""How long a node that starts again waits for node 0 to have ended its last attempt."""

# From the first word that is no option of `launch`, all belongs to the subcommand, with or without `--`.
CONTEXT_SETTINGS = {"allow_interspersed_args": False}


def launch(
    subcommand: Annotated[
        list[str] | None, typer.Argument(help="What each rank runs.", metavar="-- SUBCOMMAND")
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Ranks on this node; default: one per GPU, or 2 without GPUs.")
    ] = None,
    nnodes: Annotated[int | None, typer.Option(help="Nodes; run this command on each.")] = None,
    node_rank: Annotated[int | None, typer.Option(help="This node's number, from 0.")] = None,
    rdzv_endpoint: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Node 0, and a free port there.")
    ] = None,
    mixed_precision: Annotated[
        Literal["no", "bf16"] | None, typer.Option(help="ACCELERATE_MIXED_PRECISION; default: no.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="CPU ranks, even where there are GPUs.")] = False,
    threads: Annotated[
        int | None, typer.Option(help="Threads per rank; default: OMP_NUM_THREADS, or cores / ranks.")
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option(help="An accelerate configuration; options given here win over it.")
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Start again so many times if a rank dies; `train` goes on where it was saved.")
    ] = 0,
    grace: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="How long ranks have to save and leave after a signal to the launcher, before they are killed.",
        ),
    ] = 30,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop.")] = False,
) -> None:
    """Run a subcommand on several ranks, and show the accelerate command that does the same.

    The exit code is that of the rank that failed first (128 + n if signal n killed it); the others are
    stopped, within 5 s. With `--max-restarts` all start again then, but not after a mistake in the command (code 2), a
    request to leave (code 75), or a signal to the launcher. On several nodes give it on each: every launcher starts
    its own ranks again, and they meet at the same endpoint.

    **Examples**

    `eupmim-dist launch -- train --config configs/example.yaml --run-dir runs/example`

    `eupmim-dist launch --nproc 2 --cpu -- evaluate runs/example --split test`

    `eupmim-dist launch --max-restarts 3 -- train --config configs/example.yaml --run-dir runs/example`

    `eupmim-dist launch --nnodes 2 --node-rank 0 --rdzv-endpoint node0:29500 -- train --config FILE`

    `eupmim-dist launch --config-file configs/accelerate/zero2.yaml -- train --config FILE`
    """
    if not subcommand:
        raise UserError("nothing to launch: eupmim-dist launch --nproc 2 -- train --config FILE ...")
    if max_restarts:
        _check_resume(subcommand)
    command, env = _plan(
        subcommand, nproc, nnodes, node_rank, rdzv_endpoint, mixed_precision, cpu, threads, config_file
    )
    shown = " ".join(f"{name}={value}" for name, value in env.items())
    typer.echo(f"{shown} accelerate launch {shlex.join(command)}", err=True)
    if not dry_run and (code := _run(command, env, max_restarts, grace)):
        raise typer.Exit(code)


def _check_resume(subcommand: list[str]) -> None:
    for option, value in zip(subcommand, [*subcommand[1:], ""], strict=True):
        name, _, given = option.partition("=")
        if subcommand[0] == "train" and name == "--resume" and (given or value) != "auto":
            raise UserError(
                f"--max-restarts with --resume {given or value}: a restart goes on from the run's last checkpoint, "
                "which --resume auto does; leave one of them out"
            )


def _plan(
    subcommand: list[str],
    nproc: int | None,
    nnodes: int | None,
    node_rank: int | None,
    rdzv_endpoint: str | None,
    mixed_precision: str | None,
    cpu: bool,
    threads: int | None,
    config_file: Path | None,
) -> tuple[list[str], dict[str, str]]:
    """The arguments of `accelerate launch` and the environment they need."""
    import torch

    config = _accelerate_config(config_file, cpu)
    cpu = cpu or bool(config and config.use_cpu)
    deepspeed = bool(config and config.distributed_type == "DEEPSPEED")  # which needs torchrun, on one rank too
    gpus = 0 if cpu else torch.cuda.device_count()
    nnodes = _at_least_1("--nnodes", nnodes, config.num_machines if config else 1)
    configured = config.num_processes // nnodes if config and config.num_processes > 0 else None
    nproc = _at_least_1("--nproc", nproc, configured or gpus or 2)
    total = nproc * nnodes
    if gpus and nproc > gpus:
        raise UserError(f"{nproc} ranks need {nproc} GPUs and this machine has {gpus}: --nproc {gpus} or --cpu")

    command = ["--config_file", str(config_file)] if config_file else []
    command += ["--num_processes", str(total), "--num_machines", str(nnodes)]
    if nnodes > 1:
        if node_rank is None and config:
            node_rank = config.machine_rank
        if rdzv_endpoint is None and config and config.main_process_ip:
            rdzv_endpoint = f"{config.main_process_ip}:{config.main_process_port}"
        host, port = _endpoint(nnodes, node_rank, rdzv_endpoint)
        command += ["--machine_rank", str(node_rank), "--main_process_ip", host, "--main_process_port", port]
        if deepspeed:
            command += ["--deepspeed_multinode_launcher", "standard"]  # torchrun; by default it goes by pdsh
    elif total > 1 or deepspeed:
        command += ["--main_process_port", "0"]  # any free one: two launches on one machine do not clash
    if total > 1 and not (config and config.distributed_type in ("DEEPSPEED", "FSDP")):
        # On CPU too. Accelerate's --cpu starts a single process unless there is MPI; --multi_gpu means
        # torchrun, and a rank that sees no GPU uses gloo.
        command += ["--multi_gpu"]
    elif cpu and total == 1 and not deepspeed:
        command += ["--cpu"]
    if mixed_precision or not config:
        command += ["--mixed_precision", mixed_precision or "no"]
    if not config:
        command += ["--dynamo_backend", "no"]

    env = {"EUPMIM_WORLD_SIZE": str(total)}
    if cpu:
        env |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    preset = os.environ.get("OMP_NUM_THREADS") if threads is None else None
    env["OMP_NUM_THREADS"] = preset or str(_at_least_1("--threads", threads, max(1, cores // nproc)))
    return [*command, "-m", MODULE, *subcommand], env


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


def _run(command: list[str], env: dict[str, str], max_restarts: int, grace: int) -> int:
    """Runs `accelerate launch`, again after a rank has died; the exit code of the last attempt."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    from eupmim_dist.train.preemption import EXIT_CODE, SIGNALS

    # A user's mistake; asked to leave, in training or before it.
    final = {0, 2, EXIT_CODE, 128 + signal.SIGINT, *(-number for number in SIGNALS)}
    try:
        rank, code = _attempt(command, env, grace)
        for restart in range(1, max_restarts + 1):
            if code in final:
                break
            typer.echo(f"{_death(rank, code)}: starting again, {restart} of {max_restarts}", err=True)
            _await_node_0(command)
            rank, code = _attempt(command, env, grace)
    except SignalException as stopped:  # at any time: torchrun's handlers stay after its end
        typer.echo(f"stopped by {stopped.sigval.name}", err=True)
        return 128 + stopped.sigval
    if code >= 0:  # the rank has said why
        return code
    hint = ": out of memory?" if -code == signal.SIGKILL else ""
    typer.echo(f"error: {_death(rank, code)}{hint}", err=True)
    return 128 - code


def _death(rank: int, code: int) -> str:
    return f"rank {rank} " + (f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with code {code}")


def _attempt(command: list[str], env: dict[str, str], grace: int) -> tuple[int, int]:
    """Runs `accelerate launch` in this process, so that its failure is an object and not a page of text.

    Returns the rank that failed first and its exit code, which is negative if a signal killed it; 0, 0 for success.
    """
    import logging

    import torch.distributed as dist
    from accelerate.commands import launch as accelerate_launch
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.api import PContext
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    debug = os.environ.get("EUPMIM_DEBUG") == "1"
    # Accelerate's own starts one process, and leaves it running when the launcher is told to stop.
    accelerate_launch.simple_launcher = _run_alone
    # What torchrun gives the others once a rank has failed; for ranks that are asked to leave it has an option.
    PContext.close.__defaults__ = (None, SURVIVORS_SECONDS)
    try:
        if not debug:
            logging.disable(logging.CRITICAL)  # the ranks say what went wrong; elastic's report only repeats it
        args = accelerate_launch.launch_command_parser().parse_args(command)
        args.signals_to_handle = ",".join(number.name for number in FORWARDED)  # torchrun's, which accelerate fills in
        args.shutdown_timeout = grace  # the same; since torch 2.12
        with patch_environment(**env, **{LAUNCHER_VARIABLE: str(os.getpid())}):
            accelerate_launch.launch_command(args)
    except ChildFailedError as failed:
        if debug:
            typer.echo(str(failed), err=True)
        rank, failure = failed.get_first_failure()
        return rank, failure.exitcode
    except subprocess.CalledProcessError as failed:
        return 0, failed.returncode
    except (
        ValueError,
        AssertionError,
        ConnectionError,
        ImportError,
        RendezvousError,
        dist.DistError,
    ) as error:
        if debug:
            raise
        raise UserError(f"accelerate launch: {' '.join(str(error).split())}") from error
    finally:
        logging.disable(logging.NOTSET)
    return 0, 0


def _await_node_0(command: list[str]) -> None:
    """On another node: waits until the endpoint of the last attempt is closed, whose keys are not the next one's."""
    options = dict(pairwise(command))
    if options.get("--machine_rank", "0") == "0":
        return
    endpoint = options["--main_process_ip"], int(options["--main_process_port"])
    deadline = time.monotonic() + ENDPOINT_SECONDS
    with suppress(OSError):
        while time.monotonic() < deadline:
            socket.create_connection(endpoint, timeout=1).close()
            time.sleep(0.1)


def _run_alone(args: Namespace) -> None:
    from accelerate.utils import prepare_simple_launcher_cmd_env

    command, env = prepare_simple_launcher_cmd_env(args)
    # Its own session, as torchrun gives its ranks: Ctrl-C reaches it once, from here.
    child = subprocess.Popen(command, env=env, start_new_session=True)
    previous = {number: signal.signal(number, lambda got, _: child.send_signal(got)) for number in FORWARDED}
    try:
        if child.wait():
            raise subprocess.CalledProcessError(child.returncode, command)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _accelerate_config(path: Path | None, cpu: bool) -> Any:
    """The configuration accelerate will read: the file given, else its user-wide default (not for --cpu)."""
    from accelerate.commands.config import default_config_file, load_config_from_file

    if path is None and (cpu or not os.path.isfile(default_config_file)):
        return None
    try:
        return load_config_from_file(str(path) if path else None)
    except Exception as error:  # whatever its YAML reader and checks raise
        raise UserError(f"{path or default_config_file}: {' '.join(str(error).split())}") from error


def _at_least_1(option: str, value: int | None, default: int) -> int:
    if value is not None and value < 1:
        raise UserError(f"{option} {value}: must be at least 1")
    return default if value is None else value


def _endpoint(nnodes: int, node_rank: int | None, endpoint: str | None) -> tuple[str, str]:
    """Host and port at which `nnodes` nodes meet."""
    if node_rank is None or endpoint is None:
        raise UserError(f"--nnodes {nnodes} also needs --node-rank (0 to {nnodes - 1}) and --rdzv-endpoint HOST:PORT")
    if not 0 <= node_rank < nnodes:
        raise UserError(f"--node-rank {node_rank}: must be 0 to {nnodes - 1} for --nnodes {nnodes}")
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--rdzv-endpoint {endpoint}: must be HOST:PORT, such as node0:29500")
    return host, port
