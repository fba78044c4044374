"""`eupmim-dist export`."""

from pathlib import Path
from typing import Annotated

import typer

from eupmim_dist.cli.options import DataOption, LastOption

FORMATS = ("npy", "parquet", "faiss", "authors")


def export(
    run_or_checkpoint: Annotated[
        Path, typer.Argument(help="A run directory, a checkpoint, or a consolidated or imported model.")
    ],
    out: Annotated[Path, typer.Option(help="Directory to write to.")],
    what: Annotated[
        list[str] | None,
        typer.Option(help="`items`, `users` or both, separated by a comma.  \\[default: items,users]"),
    ] = None,
    format_name: Annotated[
        str, typer.Option("--format", help="npy, parquet, faiss or authors.", metavar="NAME")
    ] = "npy",
    data: DataOption = None,
    last: LastOption = False,
) -> None:
    """Write item vectors and users' interest vectors for another program, or the model as its authors save theirs.

    An item's score for a user is the largest dot product of its vector with any of the user's K interests: that is
    what `recommend` ranks by, and the vectors of a user are of the whole history, as there.

    `npy`: `items.npy` [items, D] and `users.npy` [users, K, D], float32, with `items.parquet` and `users.parquet`
    saying whose a row is: row i there is row i here, `item` and `user` are raw ids. `parquet`: one file for each, the
    vectors in it; of users a row for each interest. `faiss`: `items.faiss`, which finds rows of `items.parquet` by
    users' vectors, and those as with npy; needs `pip install "eupmim-dist[faiss]"`. `authors`: `model.pt`, which
    `import` reads back.

    **Examples**

    `eupmim-dist export runs/example --out vectors`

    `eupmim-dist export models/example --what items --format parquet --out vectors`

    `eupmim-dist export runs/example --format faiss --out index`

    `eupmim-dist export runs/example --format authors --out released`
    """
    from eupmim_dist import convert
    from eupmim_dist.checkpoint.layout import resolve
    from eupmim_dist.cli.options import comma_separated
    from eupmim_dist.errors import UserError

    if format_name not in FORMATS:
        raise UserError(f"--format {format_name}: choose from {', '.join(FORMATS)}")
    if format_name == "authors" and what:
        raise UserError("--what: --format authors writes the whole model; leave it out")
    kinds = comma_separated("--what", what or list(convert.KINDS))
    checkpoint = resolve(run_or_checkpoint, "last" if last else "best")
    if format_name == "authors":
        store, untold = convert.export_authors(checkpoint, out, data)
    else:
        convert.export_vectors(checkpoint, out, kinds, format_name, data)
    typer.echo(f"{checkpoint.path} -> {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if format_name == "authors":
        again = f"eupmim-dist import {out / 'model.pt'} --data {store} --out DIR"
        typer.echo(f"back again with `{' '.join([again, *(f'--set {setting}' for setting in untold)])}`")
    if (out / "items.faiss").exists():
        typer.echo(
            "search it, float32 [n, D] for n vectors such as a user's interests:\n"
            f"  import faiss; index = faiss.read_index('{out / 'items.faiss'}')\n"
            "  scores, rows = index.search(vectors, 10)  # [n, 10], rows of items.parquet; an item's score is its best"
        )
