"""`eupmim-dist consolidate`."""

from pathlib import Path
from typing import Annotated

import typer

from eupmim_dist.cli.options import LastOption


def consolidate(
    checkpoint: Annotated[Path, typer.Argument(help="A run directory or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="Directory to write the model to.")],
    last: LastOption = False,
) -> None:
    """Join the shards of a checkpoint into one `model.safetensors` with its `config.json`.

    Works by blocks of rows, so memory does not grow with the tables.

    **Examples**

    `eupmim-dist consolidate runs/example --out models/example`

    `eupmim-dist recommend models/example --user 42`
    """
    from rich.progress import Progress

    from eupmim_dist.checkpoint.layout import resolve
    from eupmim_dist.checkpoint.model_dir import consolidate as join
    from eupmim_dist.errors import UserError
    from eupmim_dist.telemetry.log import console

    source = resolve(checkpoint, "last" if last else "best")
    if source.is_model:
        raise UserError(f"{checkpoint}: is consolidated already")
    with Progress(transient=True, console=console(), disable=not console().is_terminal) as progress:
        task = progress.add_task("consolidating", total=None)
        size = join(source, out, on_bytes=lambda done: progress.advance(task, done))
    typer.echo(f"{source.path} -> {out}: {size / 1e6:,.1f} MB, step {source.step}")
