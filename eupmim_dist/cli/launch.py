"""`eupmim-dist launch`: any subcommand on several ranks, through accelerate's own launcher."""

import os
import shlex
import signal
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from eupmim_dist.errors import UserError

MODULE = "eupmim_dist"

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
"""Signals that the launcher hands on to its ranks; its own exit code is then 128 + the signal's number."""

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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop.")] = False,
) -> None:
    """Run a subcommand on several ranks, and show the accelerate command that does the same.

    The exit code is that of the rank that failed first (128 + n if signal n killed it); the others are
    stopped.

    **Examples**

    `eupmim-dist launch -- train --config configs/example.yaml --run-dir runs/example`

    `eupmim-dist launch --nproc 2 --cpu -- evaluate runs/example --split test`

    `eupmim-dist launch --nnodes 2 --node-rank 0 --rdzv-endpoint node0:29500 -- train --config FILE`
    """
    if not subcommand:
        raise UserError("nothing to launch: eupmim-dist launch --nproc 2 -- train --config FILE ...")
    command, env = _plan(
        subcommand, nproc, nnodes, node_rank, rdzv_endpoint, mixed_precision, cpu, threads, config_file
    )
    shown = " ".join(f"{name}={value}" for name, value in env.items())
    typer.echo(f"{shown} accelerate launch {shlex.join(command)}", err=True)
    if not dry_run and (code := _run(command, env)):
        raise typer.Exit(code)


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
    elif total > 1:
        command += ["--main_process_port", "0"]  # any free one: two launches on one machine do not clash
    if total > 1 and not (config and config.distributed_type in ("DEEPSPEED", "FSDP")):
        # On CPU too. Accelerate's --cpu starts a single process unless there is MPI; --multi_gpu means
        # torchrun, and a rank that sees no GPU uses gloo.
        command += ["--multi_gpu"]
    elif cpu and total == 1:
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


def _run(command: list[str], env: dict[str, str]) -> int:
    """Run `accelerate launch` in this process, so that its failure is an object and not a page of text."""
    import logging

    import torch.distributed as dist
    from accelerate.commands import launch as accelerate_launch
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    debug = os.environ.get("EUPMIM_DEBUG") == "1"
    # Accelerate's own starts one process, and leaves it running when the launcher is told to stop.
    accelerate_launch.simple_launcher = _run_alone
    try:
        if not debug:
            logging.disable(logging.CRITICAL)  # the ranks say what went wrong; elastic's report only repeats it
        args = accelerate_launch.launch_command_parser().parse_args(command)
        args.signals_to_handle = ",".join(number.name for number in FORWARDED)  # torchrun's, which accelerate fills in
        with patch_environment(**env):
            accelerate_launch.launch_command(args)
    except ChildFailedError as failed:
        if debug:
            typer.echo(str(failed), err=True)
        rank, failure = failed.get_first_failure()
        return _exit_code(rank, failure.exitcode)
    except subprocess.CalledProcessError as failed:
        return _exit_code(0, failed.returncode)
    except SignalException as stopped:
        typer.echo(f"stopped by {stopped.sigval.name}", err=True)
        return 128 + stopped.sigval
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
    return 0


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


def _exit_code(rank: int, code: int) -> int:
    """A shell's exit code for a child's, which is negative if a signal killed it; names rank and signal."""
    if code >= 0:
        return code
    hint = ": out of memory?" if -code == signal.SIGKILL else ""
    typer.echo(f"error: rank {rank} was killed by {signal.Signals(-code).name}{hint}", err=True)
    return 128 - code


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
