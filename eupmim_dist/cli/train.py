"""`eupmim-dist train`."""

from pathlib import Path
from typing import Annotated

import typer


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
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there are GPUs.")] = False,
) -> None:
    """Train a model, evaluate the best checkpoint on the test split.

    Ctrl-C, SIGTERM or SIGUSR1 on any rank has all save after the step and exit with code 75; the same command goes on.

    On several ranks start it through `eupmim-dist launch`, `accelerate launch` or `torchrun`; dropout aside, results
    do not depend on their number.

    **Examples**

    `eupmim-dist train --config configs/example.yaml --run-dir runs/a`

    `eupmim-dist train --config configs/example.yaml --set model.num_interests=4 --run-dir runs/b`

    `eupmim-dist launch --nproc 2 -- train --config configs/example.yaml --run-dir runs/c`
    """
    from eupmim_dist import assemble
    from eupmim_dist.checkpoint.load import load_training
    from eupmim_dist.checkpoint.run_dir import find_start, forget_lost_best, write_config
    from eupmim_dist.config.load import load_config
    from eupmim_dist.parallel.agreement import agreed
    from eupmim_dist.parallel.world import init_world, shutdown
    from eupmim_dist.telemetry.log import get_logger
    from eupmim_dist.train.preemption import EXIT_CODE, leaving_on_signal

    world = init_world(cpu)
    log = get_logger(world.rank)
    with agreed(world):
        settings = load_config(config, set_ or [])
    with agreed(world):
        start = find_start(run_dir, resume, settings, world)
    store = assemble.open_store(settings.data.dir, world)
    with agreed(world):
        run = assemble.assemble_run(settings, world, store)
        if start.checkpoint:
            assemble.check_same_data(start.checkpoint, store)
        for line in assemble.describe(run):
            log.info(line)
    if start.checkpoint:
        with agreed(world):
            load_training(run, start.checkpoint)
        forget_lost_best(run, run_dir)
        log.info(f"going on from {start.checkpoint.path}, step {run.progress.step}")
    with agreed(world):
        if world.is_main:
            write_config(run_dir, settings)
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
