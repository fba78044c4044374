"""`eupmim-dist reshard`."""

from pathlib import Path
from typing import Annotated

import typer


def reshard(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run directory, of which the last is taken.")],
    nproc: Annotated[int, typer.Option(min=1, max=99_999, help="Number of ranks to write the checkpoint for.")],
    out: Annotated[Path, typer.Option(help="Directory to write the checkpoint to.")],
) -> None:
    """Rewrite a training checkpoint as another number of ranks would have written it.

    Training goes on from any checkpoint at any number of ranks, so there is no need to reshard before. It makes
    files that suit their readers: as many and as even as the ranks that will read them in parallel, or one instead of
    hundreds to archive. Weights, optimizer states and progress stay as they are, bit for bit.

    Works by blocks of rows, so memory does not grow with the tables.

    **Examples**

    `eupmim-dist reshard runs/example --nproc 8 --out checkpoints/for-8`

    `eupmim-dist launch --nproc 8 -- train --config configs/example.yaml --run-dir runs/b --resume checkpoints/for-8`
    """
    from eupmim_dist.checkpoint.layout import num_bytes, resolve
    from eupmim_dist.checkpoint.reshard import reshard as rewrite
    from eupmim_dist.errors import UserError
    from eupmim_dist.telemetry.progress import byte_progress

    source = resolve(checkpoint, "last")
    if source.is_model:
        raise UserError(f"{checkpoint}: is a model without training state; give a run or a checkpoint of one")
    size = num_bytes(source.path)
    with byte_progress("resharding", 2 * size) as on_bytes:
        rewrite(source, nproc, out, on_bytes)
    typer.echo(
        f"{source.path} -> {out}: {size / 1e6:,.1f} MB for {nproc} rank{'s' if nproc > 1 else ''}, step {source.step}"
    )
