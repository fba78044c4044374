"""`eupmim-dist launch`: any subcommand on several ranks, through accelerate's own launcher."""

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from eupmim_dist.cli.attempts import run_attempts
from eupmim_dist.errors import UserError, short
from eupmim_dist.parallel import descriptors, processors

MODULE = "eupmim_dist"

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
        int | None,
        typer.Option(help="Threads per rank; default: OMP_NUM_THREADS, or cores / ranks; `train` may use fewer."),
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
    descriptors.allow(int(env["EUPMIM_WORLD_SIZE"]))  # of this process, which the ranks connect to, and of those
    if not dry_run and (code := run_attempts(command, env, max_restarts, grace)):
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
    cores = len(processors.available())
    preset = os.environ.get("OMP_NUM_THREADS") if threads is None else None
    env["OMP_NUM_THREADS"] = preset or str(_at_least_1("--threads", threads, max(1, cores // nproc)))
    if preset is None and threads is None:
        env["EUPMIM_CHOOSE_THREADS"] = "1"  # nobody has asked for so many: train/threads.py
    return [*command, "-m", MODULE, *subcommand], env


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
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise UserError(f"--rdzv-endpoint {short(endpoint)}: must be HOST:PORT, such as node0:29500")
    return host, port
