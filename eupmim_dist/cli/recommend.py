"""`eupmim-dist recommend`."""

from pathlib import Path
from typing import Annotated

import typer

from eupmim_dist.cli.options import CategoriesOption, DataOption, DiversityOption, LastOption, check_json, write_json


def recommend(
    run_or_checkpoint: Annotated[
        Path, typer.Argument(help="A run directory, a checkpoint, or a consolidated or imported model.")
    ],
    user: Annotated[list[str], typer.Option(help="Raw user id, as in the source data; may be repeated.")],
    top_n: Annotated[int, typer.Option(min=1, help="Items per user.")] = 10,
    data: DataOption = None,
    last: LastOption = False,
    include_seen: Annotated[bool, typer.Option(help="Recommend also what the user had already.")] = False,
    diversity: DiversityOption = 0.0,
    categories: CategoriesOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the recommendations to this file.")] = None,
) -> None:
    """Recommend items to users, from their whole history, with the interest that each item answers to.

    **Examples**

    `eupmim-dist recommend runs/example --user 42 --top-n 5`

    `eupmim-dist recommend runs/example --user 42 --categories items.csv --diversity 0.5`

    `eupmim-dist recommend models/released --user 17 --user 23 --json recommendations.json`
    """
    from rich.table import Table

    from eupmim_dist import api
    from eupmim_dist.telemetry.log import console

    check_json(json_file)
    found = api.recommendations(
        run_or_checkpoint,
        user,
        top_n,
        exclude_seen=not include_seen,
        diversity=diversity,
        categories=categories,
        data=data,
        which="last" if last else "best",
    )
    for entry in found:
        recent = ", ".join(item.label for item in entry.recent) or "nothing"
        table = Table(title=f"user {entry.user}, after {recent}", title_justify="left")
        for column in ("#", "item", "title", "score", "interest"):
            table.add_column(column, justify="right" if column in ("#", "score", "interest") else "left")
        for rank, item in enumerate(entry.items, start=1):
            table.add_row(str(rank), item.raw_id, item.title or "", f"{item.score:.3f}", str(item.interest))
        console().print(table)  # titles are not markup
    write_json(json_file, [entry.as_dict() for entry in found], ensure_ascii=False)
