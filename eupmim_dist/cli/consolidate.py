"""`eupmim-dist consolidate`."""

from pathlib import Path
from typing import Annotated

import typer

from eupmim_dist.cli.options import DataOption, LastOption


def consolidate(
    checkpoint: Annotated[Path, typer.Argument(help="A run directory or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="Directory to write the model to.")],
    data: DataOption = None,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Cut a larger model into files of at most this size, such as 500MB.")
    ] = "5GB",
    last: LastOption = False,
) -> None:
    """Join the shards of a checkpoint into a model to hand on.

    The directory holds `model.safetensors` with its `config.json`.

    A model above `--max-shard-size` becomes `model-00001-of-0000N.safetensors` and on, with
    `model.safetensors.index.json`; a tensor is always whole in one file. The store's `items.parquet` and
    `users.parquet` say which raw id a row is of; `README.md` is a model card.

    Works by blocks of rows, so memory does not grow with the tables.

    **Examples**

    `eupmim-dist consolidate runs/example --out models/example`

    `eupmim-dist consolidate runs/example/checkpoints/step-000001000 --out models/early --max-shard-size 500MB`

    `eupmim-dist recommend models/example --user 42`
    """
    from eupmim_dist.checkpoint.layout import num_bytes, resolve
    from eupmim_dist.errors import UserError
    from eupmim_dist.export.model_dir import consolidate as join
    from eupmim_dist.export.model_dir import model_pieces, parse_size
    from eupmim_dist.telemetry.progress import byte_progress

    limit = parse_size(max_shard_size)
    source = resolve(checkpoint, "last" if last else "best")
    if source.is_model:
        raise UserError(f"{checkpoint}: is consolidated already")
    to_write = sum(piece.num_bytes for pieces in model_pieces(source).values() for piece in pieces)
    with byte_progress("consolidating", num_bytes(source.path) + to_write) as on_bytes:
        size = join(source, out, data, limit, on_bytes)
    typer.echo(f"{source.path} -> {out}: {size / 1e6:,.1f} MB, step {source.step}")
