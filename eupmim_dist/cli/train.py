"""`eupmim-dist train`."""

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    config: Annotated[
        Path | None, typer.Option(help="YAML configuration, or a model's config.json; the defaults where not given.")
    ] = None,
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
    resume_with: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Go on with another learning rate, schedule, clipping or decay from here on; may be repeated.",
        ),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL_OR_CHECKPOINT",
            help="Start from the weights, and the model settings, of this run, checkpoint or model.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="Beside the result: `popularity`, `ease`, `cooccurrence` or `association`, several with commas or "
            "repeated; or `none`. By default popularity and association, where they need seconds."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be trained, the memory and the time it would take; no more."),
    ] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there are GPUs.")] = False,
) -> None:
    """Train a model, evaluate the best checkpoint on the test split, beside baselines.

    With `--init-from` it is fine-tuned: a new training, from step 0, that starts from the weights of a trained model.
    The data may be another: users and items are matched by raw id, attributes by label, new ones get initial values.
    The settings of `model`, and `task.history_length`, are that model's where `--config` and `--set` do not say them
    (the setting train.init_from takes the weights alone). The same command resumes it.

    Ctrl-C, SIGTERM or SIGUSR1 on any rank has all save after the step and exit with code 75; the same command goes on.

    On several ranks start it through `eupmim-dist launch`, `accelerate launch` or `torchrun`; dropout aside, results
    do not depend on their number.

    **Examples**

    `eupmim-dist train --config configs/example.yaml --run-dir runs/a`

    `eupmim-dist train --config configs/example.yaml --set model.num_interests=4 --run-dir runs/b`

    `eupmim-dist train --config configs/example.yaml --dry-run`

    `eupmim-dist launch --nproc 2 -- train --config configs/example.yaml --run-dir runs/c`

    `eupmim-dist train --config runs/a/config.yaml --set train.max_steps=9000 --run-dir runs/a`

    `eupmim-dist train --config runs/a/config.yaml --run-dir runs/a --resume-with train.learning_rate=1e-4`

    `eupmim-dist train --init-from models/may --set data.dir=data/june --run-dir runs/june`

    `eupmim-dist train --config models/may/config.json --set data.dir=data/june --init-from models/may --run-dir runs/c`
    """
    from eupmim_dist import api
    from eupmim_dist.cli.next_steps import next_steps
    from eupmim_dist.cli.options import comma_separated
    from eupmim_dist.cli.tables import print_results
    from eupmim_dist.parallel.agreement import agreed
    from eupmim_dist.parallel.world import init_world, shutdown
    from eupmim_dist.telemetry.log import get_logger
    from eupmim_dist.train.preemption import EXIT_CODE

    world = init_world(cpu)
    with agreed(world):
        rivals = None if baseline is None else comma_separated("--baseline", baseline)
        rivals = [] if rivals == ["none"] else rivals
    asked: dict[str, Any] = {
        "overrides": set_ or [],
        "resume": resume,
        "resume_with": resume_with or [],
        "init_from": init_from,
        "cpu": cpu,
    }
    if dry_run:
        api.dry_run(config, run_dir, baselines=rivals or [], **asked)
        shutdown(world)
        return
    fitted = api.fit(config, run_dir, baselines=rivals, **asked)
    with agreed(world):
        if fitted.finished and world.is_main:
            print_results(fitted.results)
            get_logger().info("\n".join(["What to run next:", *next_steps(fitted.model, run_dir)]))
    shutdown(world)
    if not fitted.finished:
        raise typer.Exit(EXIT_CODE)
