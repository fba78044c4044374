"""`eupmim-dist export`."""

from pathlib import Path
from typing import Annotated

import typer

from eupmim_dist.cli.options import DataOption, LastOption

FORMATS = ("npy", "parquet", "faiss", "authors")
KINDS = ("items", "users")


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
    saying whose a row is. `parquet`: one file for each, the vectors in it; of users a row for each interest.
    `faiss`: `items.faiss`, to be searched by the users' vectors, which are written as with npy; needs
    `pip install "eupmim-dist[faiss]"`. `authors`: `model.pt`, which `import` reads back.

    **Examples**

    `eupmim-dist export runs/example --out vectors`

    `eupmim-dist export models/example --what items --format parquet --out vectors`

    `eupmim-dist export runs/example --format faiss --out index`

    `eupmim-dist export runs/example --format authors --out released`
    """
    from collections.abc import Iterator
    from dataclasses import replace

    from rich.progress import Progress

    from eupmim_dist import assemble
    from eupmim_dist.checkpoint.layout import resolve
    from eupmim_dist.checkpoint.load import check_hashes
    from eupmim_dist.checkpoint.origin import store_of
    from eupmim_dist.cli.options import comma_separated
    from eupmim_dist.errors import UserError
    from eupmim_dist.export.exported import item_vectors, write_authors
    from eupmim_dist.export.vector_files import Block, Vectors, import_faiss, write_faiss, write_npy, write_parquet
    from eupmim_dist.export.vectors import user_vectors
    from eupmim_dist.files import out_directory
    from eupmim_dist.parallel.world import init_world
    from eupmim_dist.telemetry.log import console

    if format_name not in FORMATS:
        raise UserError(f"--format {format_name}: choose from {', '.join(FORMATS)}")
    if format_name == "authors" and what:
        raise UserError("--what: --format authors writes the whole model; leave it out")
    kinds = comma_separated("--what", what or list(KINDS))
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--what {kind}: choose from {', '.join(KINDS)}")
    if format_name == "faiss":
        import_faiss()  # fails before the work that it would end
    writers = {"items": write_npy, "users": write_npy}
    if format_name == "parquet":
        writers = {"items": write_parquet, "users": write_parquet}
    elif format_name == "faiss":
        writers["items"] = write_faiss

    checkpoint = resolve(run_or_checkpoint, "last" if last else "best")
    store = store_of(checkpoint, data)
    world = init_world(cpu=True)
    terminal = console(stderr=True)
    with out_directory(out) as staging:
        if format_name == "authors" or "users" not in kinds:  # the tables are read from the files, not loaded
            check_hashes(checkpoint.path, world)
            assemble.open_store(store.path, world)
        else:
            trained = assemble.load_trained(checkpoint.path, world, store.path)
        with Progress(transient=True, console=terminal, disable=not terminal.is_terminal) as progress:
            task = progress.add_task(f"writing {out}", total=None)

            def shown(vectors: Vectors) -> Iterator[Block]:
                progress.reset(task, description=vectors.kind, total=vectors.shape[0])
                for ids, block in vectors.blocks:
                    yield ids, block
                    progress.advance(task, len(ids))

            if format_name == "authors":
                untold = write_authors(checkpoint, store, staging / "model.pt")
            else:
                for kind in kinds:
                    vectors = item_vectors(checkpoint) if kind == "items" else user_vectors(trained)
                    writers[kind](replace(vectors, blocks=shown(vectors)), store.path, staging)
    typer.echo(f"{checkpoint.path} -> {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if format_name == "authors":
        again = f"eupmim-dist import {out / 'model.pt'} --data {store.path} --out DIR"
        typer.echo(f"back again with `{' '.join([again, *(f'--set {setting}' for setting in untold)])}`")
    if (out / "items.faiss").exists():
        typer.echo(
            "search it, float32 [n, D] for n vectors such as a user's interests:\n"
            f"  import faiss; index = faiss.read_index('{out / 'items.faiss'}')\n"
            "  scores, items = index.search(vectors, 10)  # [n, 10]; an item's score for a user is its best one"
        )
