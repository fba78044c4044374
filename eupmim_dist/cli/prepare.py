"""`eupmim-dist prepare`."""

from pathlib import Path
from typing import Annotated

import typer


def prepare(
    source: Annotated[Path, typer.Argument(help="The directory (csv and parquet: the file) to read.")],
    format_name: Annotated[
        str,
        typer.Option(
            "--format", help="eupmim, movielens, comirec, fliggy, sequential, csv or parquet.", metavar="NAME"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory of the new store.")],
    name: Annotated[str | None, typer.Option(help="Name of the data set; the directory's if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the store that OUT already holds.")] = False,
    permute_items: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="Number the items anew by chance, so that ids tell nothing (see audit)."),
    ] = None,
    user_column: Annotated[str | None, typer.Option(help="csv, parquet: the column of user ids.")] = None,
    item_column: Annotated[str | None, typer.Option(help="csv, parquet: the column of item ids.")] = None,
    time_column: Annotated[
        str | None, typer.Option(help="csv, parquet: the column to order by; file order if left out.")
    ] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="csv, parquet: a column of user attributes; may be repeated.")
    ] = None,
    title_column: Annotated[str | None, typer.Option(help="csv, parquet: the column of item titles.")] = None,
    min_count: Annotated[
        int | None,
        typer.Option(help="csv, parquet: drop items and users with fewer interactions, until stable.  \\[default: 5]"),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="csv, parquet: by_user or leave_one_out.  \\[default: by_user]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="csv, parquet: seed of the split by user.  \\[default: 1230]")
    ] = None,
) -> None:
    """Make an interaction store from raw or prepared data files.

    Bad input is refused with its file and line, and nothing is left half-written.

    **Examples**

    `eupmim-dist prepare downloads/ml-1m --format movielens --out data/ml-1m`

    `eupmim-dist prepare amazon/beauty --format sequential --permute-items 1 --out data/beauty`

    `eupmim-dist prepare log.csv --format csv --user-column user --item-column item --time-column time --out data/log`
    """
    from eupmim_dist.cli.stores import print_store, stage_progress
    from eupmim_dist.data.formats import Options
    from eupmim_dist.data.prepare import prepare_store

    options = Options(
        user_column=user_column,
        item_column=item_column,
        time_column=time_column,
        attributes=tuple(attribute or ()),
        title_column=title_column,
        min_count=min_count,
        split=split,
        seed=seed,
    )
    with stage_progress() as progress:
        manifest = prepare_store(
            source, out, format_name, options, name=name, permute_items=permute_items, force=force, progress=progress
        )
    print_store(out, manifest)
