"""`eupmim-dist prepare`."""

from pathlib import Path
from typing import Annotated

import typer


def prepare(
    source: Annotated[
        list[Path],
        typer.Argument(help="The directory to read; csv, parquet: one or more files, or a folder of parts."),
    ],
    format_name: Annotated[
        str,
        typer.Option(
            "--format", help="eupmim, movielens, comirec, fliggy, sequential, elmrec, csv or parquet.", metavar="NAME"
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Directory of the new store.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the data set; the directory's if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the store that OUT already holds.")] = False,
    permute_users: Annotated[
        int | None, typer.Option(metavar="SEED", help="Number the users anew by chance.  \\[default: elmrec: 1]")
    ] = None,
    permute_items: Annotated[
        int | None,
        typer.Option(
            metavar="SEED",
            help="The same of the items, so that ids tell nothing (see audit).  \\[default: elmrec: 1]",
        ),
    ] = None,
    keep_ids: Annotated[
        bool, typer.Option("--keep-ids", help="elmrec: users and items keep their numbers, which tell some targets.")
    ] = False,
    negatives_seed: Annotated[
        int | None,
        typer.Option(help="elmrec: seed of negatives to draw, without a negative.txt.  \\[default: 12345]"),
    ] = None,
    negatives_rule: Annotated[
        str | None,
        typer.Option(
            help="elmrec: distinct, or repeats where a user may have a negative twice, as the published toys do.  "
            "\\[default: distinct if drawn]"
        ),
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
    separator: Annotated[
        str | None, typer.Option(help="csv: what is between fields; found among , ; tab | if left out.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="csv: such as cp1252.  \\[default: by a byte-order mark, or utf-8]")
    ] = None,
    time_format: Annotated[
        str | None,
        typer.Option(help="csv, parquet: how times are written, such as '%d.%m.%Y %H:%M', if not as ISO 8601."),
    ] = None,
    trim: Annotated[bool, typer.Option("--trim", help="csv, parquet: drop blanks around values.")] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="csv, parquet: rows to take, as event=view,cart, event!=refund or rating>=4; may be repeated.",
        ),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="csv, parquet: leave bad rows out and count them, by reason.")
    ] = False,
    items: Annotated[
        Path | None, typer.Option(help="CSV, Parquet or JSONL with a column item, and what is known of each.")
    ] = None,
    items_separator: Annotated[str | None, typer.Option(help="Of --items, as --separator: found if left out.")] = None,
    items_encoding: Annotated[str | None, typer.Option(help="Of --items, as --encoding.")] = None,
    item_attribute: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SEP]",
            help="A column of --items with categories, as genres:| where one field holds several; may be repeated.",
        ),
    ] = None,
    item_number: Annotated[
        list[str] | None, typer.Option(help="A column of --items with numbers, such as a price; may be repeated.")
    ] = None,
    item_vectors: Annotated[
        Path | None, typer.Option(help="Vectors of items: Parquet with item and vector, or npy as of export.")
    ] = None,
    user_vectors: Annotated[
        Path | None, typer.Option(help="The same of users; of K interests, as of export, one after another.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is taken for what, and the first users; write nothing.")
    ] = False,
) -> None:
    """Make an interaction store from raw or prepared data files.

    Bad input is refused with its file and line, and nothing is left half-written.

    **Examples**

    `eupmim-dist prepare downloads/ml-1m --format movielens --out data/ml-1m`

    `eupmim-dist prepare amazon/beauty --format sequential --permute-items 1 --out data/beauty`

    `eupmim-dist prepare amazon/toys --format elmrec --out data/toys`

    `eupmim-dist prepare log.csv --format csv --user-column user --item-column item --time-column time --out data/log`

    `eupmim-dist prepare parts/ --format csv --user-column user --item-column item --where "rating>=4" --dry-run`

    `eupmim-dist prepare log.csv --format csv --user-column user --item-column item --items items.csv --item-attribute
    "tags:|" --item-number price --out data/log`
    """
    from eupmim_dist.cli.stores import print_store, print_told, stage_progress
    from eupmim_dist.data.formats import Options
    from eupmim_dist.data.item_features import Known
    from eupmim_dist.data.permute import permuting_seeds
    from eupmim_dist.data.prepare import look_at, prepare_store
    from eupmim_dist.errors import UserError

    options = Options(
        user_column=user_column,
        item_column=item_column,
        time_column=time_column,
        attributes=tuple(attribute or ()),
        title_column=title_column,
        min_count=min_count,
        split=split,
        seed=seed,
        separator=separator,
        encoding=encoding,
        time_format=time_format,
        trim=trim,
        where=tuple(where or ()),
        skip_bad=skip_bad,
        negatives_seed=negatives_seed,
        negatives_rule=negatives_rule,
    )
    known = Known(
        items=items,
        items_separator=items_separator,
        items_encoding=items_encoding,
        attributes=tuple(item_attribute or ()),
        numbers=tuple(item_number or ()),
        item_vectors=item_vectors,
        user_vectors=user_vectors,
    )
    if out is None and not dry_run:
        raise UserError("--out: name the directory of the new store, or look at the source with --dry-run")
    permuting_seeds(permute_users, permute_items, format_name, keep_ids=keep_ids)  # a dry run refuses what it would
    with stage_progress() as progress:
        if out is None or dry_run:
            look_at(
                source,
                format_name,
                options,
                beside=out or Path("store"),
                known=known,
                progress=progress,
                tell=print_told,
            )
            return
        manifest = prepare_store(
            source,
            out,
            format_name,
            options,
            name=name,
            permute_users=permute_users,
            permute_items=permute_items,
            keep_ids=keep_ids,
            force=force,
            known=known,
            progress=progress,
            tell=print_told,
        )
    print_store(out, manifest)
