"""`eupmim-dist bench ...`: measurements, each with its machine and command."""

from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(no_args_is_help=True, help="Measure speed on this machine.")


@bench.callback()
def _group() -> None:
    """Measure speed on this machine."""


@bench.command()
def step(
    data: Annotated[Path, typer.Option(help="Interaction store.")] = Path("data/example"),
    config: Annotated[Path | None, typer.Option(help="YAML configuration; the defaults where not given.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps per repetition.")] = 50,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions; the median is reported.")] = 5,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the measurements to this file.")] = None,
) -> None:
    """Measure samples/s of the full training step and users/s of evaluation.

    **Examples**

    `eupmim-dist bench step --data data/ml-1m`

    `eupmim-dist launch --nproc 2 --threads 1 -- bench step --data data/ml-1m`
    """
    import json

    from eupmim_dist.bench.step import measure_step
    from eupmim_dist.config.load import load_config
    from eupmim_dist.errors import UserError
    from eupmim_dist.parallel.agreement import agreed
    from eupmim_dist.parallel.world import init_world, shutdown

    world = init_world()
    with agreed(world):
        settings = load_config(config, [*(set_ or []), f"data.dir={data}"])
        measured = measure_step(settings, world, steps, repeats)
    if world.is_main:
        for name, value in measured.items():
            typer.echo(f"{name:26} {value:,.1f}" if isinstance(value, float) else f"{name:26} {value}")
        if json_file:
            try:
                json_file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
            except OSError as error:
                raise UserError(f"--json {json_file}: cannot be written: {error.strerror}") from None
    shutdown(world)
