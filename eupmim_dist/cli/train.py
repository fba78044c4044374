"""`eupmim-dist train`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from eupmim_dist.checkpoint.layout import Checkpoint
    from eupmim_dist.train.state import Assembled


def train(
    config: Annotated[Path | None, typer.Option(help="YAML configuration; the defaults where not given.")] = None,
    run_dir: Annotated[Path, typer.Option(help="Where the run writes; the same command goes on with it.")] = Path(
        "runs/default"
    ),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(help="`auto`: go on from the run's last checkpoint; `never`; or a checkpoint's path."),
    ] = "auto",
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL_OR_CHECKPOINT",
            help="Start from the weights of this run, checkpoint or model; rows are matched by raw id.",
        ),
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there are GPUs.")] = False,
) -> None:
    """Train a model, evaluate the best checkpoint on the test split.

    With `--init-from` (or the setting train.init_from) it is fine-tuned: a new training, from step 0, that starts from
    the weights of a trained model. The data may be another: users and items are matched by raw id, attributes by label,
    new ones get initial values. The same command resumes it.

    Ctrl-C, SIGTERM or SIGUSR1 on any rank has all save after the step and exit with code 75; the same command goes on.

    On several ranks start it through `eupmim-dist launch`, `accelerate launch` or `torchrun`; dropout aside, results
    do not depend on their number.

    **Examples**

    `eupmim-dist train --config configs/example.yaml --run-dir runs/a`

    `eupmim-dist train --config configs/example.yaml --set model.num_interests=4 --run-dir runs/b`

    `eupmim-dist launch --nproc 2 -- train --config configs/example.yaml --run-dir runs/c`

    `eupmim-dist train --config configs/example.yaml --set data.dir=data/june --init-from runs/may --run-dir runs/june`
    """
    from eupmim_dist import assemble
    from eupmim_dist.checkpoint.init_from import INIT_FILE
    from eupmim_dist.checkpoint.layout import resolve
    from eupmim_dist.checkpoint.load import load_training, open_sound
    from eupmim_dist.checkpoint.run_dir import find_start, forget_lost_best, write_config
    from eupmim_dist.config.load import load_config
    from eupmim_dist.errors import UserError
    from eupmim_dist.files import write_text
    from eupmim_dist.parallel.agreement import agreed
    from eupmim_dist.parallel.world import init_world, shutdown
    from eupmim_dist.telemetry.log import get_logger
    from eupmim_dist.train.preemption import EXIT_CODE, leaving_on_signal

    world = init_world(cpu)
    log = get_logger(world.rank)
    with agreed(world):
        settings = load_config(config, set_ or [])
        if init_from:
            settings.train.init_from = init_from
            if resume not in ("auto", "never"):
                raise UserError(f"--init-from {init_from}: begins a new training, --resume {resume} does not; give one")
    with agreed(world):
        start = find_start(run_dir, resume, settings, world)
    origin = None if start.checkpoint else settings.train.init_from
    source = open_sound(lambda: resolve(origin), world) if origin else None
    taken: list[str] = []

    def set_weights(initial: "Assembled") -> None:
        if source:
            taken.extend(_taken(initial, source))

    store = assemble.open_store(settings.data.dir, world)
    with agreed(world):
        run = assemble.assemble_run(settings, world, store, set_weights)
        if start.checkpoint:
            assemble.check_same_data(start.checkpoint, store)
        for line in assemble.describe(run):
            log.info(line)
        for line in taken:
            log.info(line)
    if start.checkpoint:
        settings.train.init_from = start.checkpoint.config.train.init_from  # stays on record
        with agreed(world):
            load_training(run, start.checkpoint)
        forget_lost_best(run, run_dir)
        log.info(f"going on from {start.checkpoint.path}, step {run.progress.step}")
        if init_from:
            log.info(f"--init-from {init_from}: not read again, this run has begun")
    with agreed(world):
        if world.is_main:
            write_config(run_dir, settings)
            if taken:
                write_text(run_dir / INIT_FILE, "\n".join(taken) + "\n")
    with agreed(world), leaving_on_signal(run):
        assemble.run_training(run, start)
    if run.asked_to_leave:
        command = "the same command" if resume == "auto" else "the same command with --resume auto"
        log.info(f"stopped as asked: step {run.progress.step} is saved, {command} goes on from there")
        shutdown(world)
        raise typer.Exit(EXIT_CODE)
    with agreed(world):
        log.info(assemble.describe_end(run))
        if world.size > 1:
            for line in assemble.describe_load(run):
                log.info(line)
        results = assemble.evaluate_best(run, run_dir)
    if world.is_main:
        from eupmim_dist.cli.tables import print_results

        print_results(results)
        log.info(f"TensorBoard: tensorboard --logdir {run_dir}")
    shutdown(world)


def _taken(initial: "Assembled", source: "Checkpoint") -> list[str]:
    """Sets the weights to those of `source`, with the progress on rank 0's terminal; what was taken, in lines."""
    from rich.progress import Progress

    from eupmim_dist.checkpoint.init_from import take_weights
    from eupmim_dist.telemetry.log import console

    shown = initial.world.is_main and console().is_terminal
    with Progress(transient=True, console=console(), disable=not shown) as progress:
        task = progress.add_task("taking weights", total=sum(4 * rows * dim for rows, dim in source.tables.values()))
        return take_weights(initial, source, lambda done: progress.advance(task, done))
