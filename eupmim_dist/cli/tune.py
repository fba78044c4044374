"""`eupmim-dist tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from eupmim_dist.tuning.results import Tuning


def tune(
    config: Annotated[Path | None, typer.Option(help="YAML configuration; the defaults where not given.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of all trials; may be repeated."),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES",
            help="A setting to search: `1..3`, `1e-4..1e-2 log`, `0..1 step 0.1`, or `32,64,96`; may be repeated.",
        ),
    ] = None,
    space: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file of settings to search, as `model.dim: 32,64`.")
    ] = None,
    trials: Annotated[int, typer.Option(help="How many trials in all.")] = 20,
    out: Annotated[Path, typer.Option(help="Where the search writes; the same command goes on there.")] = Path(
        "runs/tune"
    ),
    jobs: Annotated[
        int | None, typer.Option(help="Trials side by side; one for each visible GPU if not given, or one.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME@N", help="What trials are judged by, in place of evaluation.metric.")
    ] = None,
    pruner: Annotated[
        str, typer.Option(help="What ends hopeless trials early: `median`, `halving` or `none`.")
    ] = "median",
    timeout: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="Save what is under way and end after so long.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use the CPU even where there are GPUs.")] = False,
) -> None:
    """Search for the best settings: trial after trial, chosen by Optuna, judged on the valid split.

    Hopeless trials are pruned by what they reach at their evaluations. The test split is never looked at. Each trial is
    a run in `--out`; the checkpoints of the best are kept, and its whole configuration is `best.yaml`.

    Ctrl-C, SIGTERM or SIGUSR1 has the trials under way saved, and exits with code 75; the same command goes on with
    them. With more `--trials` it searches on.

    **Examples**

    `eupmim-dist tune --config configs/example.yaml --search 'train.learning_rate=1e-4..1e-2 log' --search
    model.dim=16,32`

    `eupmim-dist tune --config configs/models/sasrec.yaml --space space.yaml --trials 50 --jobs 2`

    `eupmim-dist train --config runs/tune/best.yaml --run-dir runs/best`
    """
    import shlex
    import sys

    from eupmim_dist.train.preemption import EXIT_CODE
    from eupmim_dist.tuning.space import read_space
    from eupmim_dist.tuning.study import check_optuna
    from eupmim_dist.tuning.tune import tune as tune_settings

    check_optuna()
    tuning = tune_settings(
        config,
        read_space(search or [], space),
        trials=trials,
        out=out,
        overrides=set_ or [],
        metric=metric,
        jobs=jobs,
        timeout=timeout,
        pruner=pruner,
        cpu=cpu,
        command=shlex.join(["eupmim-dist", *sys.argv[1:]]),
    )
    if tuning.best is not None:
        _print(tuning)
    if not tuning.finished and not tuning.timed_out:
        raise typer.Exit(EXIT_CODE)


def _print(tuning: "Tuning") -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from eupmim_dist.cli.display import print_table
    from eupmim_dist.telemetry.log import console
    from eupmim_dist.tuning.results import BEST_FILE, short_names

    rows = tuning.table()
    console().print(tuning.title)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in rows[0]:
        table.add_column(name.replace("_", "_\n"), justify="right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row.values()))
    print_table(table)
    if tuning.importance:
        names = short_names(tuning.importance)
        shares = ", ".join(f"{names[key]} {share:.0%}" for key, share in tuning.importance.items())
        console().print(f"What decides (PED-ANOVA): {shares}")
    out = tuning.out
    console().print(f"The best: {out / BEST_FILE}; its run: {tuning.best and tuning.best.run_dir}")
    console().print(f"Train it anew: eupmim-dist train --config {out / BEST_FILE} --run-dir runs/best")
