"""`eupmim-dist recommend`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eupmim_dist.cli.options import (
    CategoriesOption,
    DataOption,
    DiversityOption,
    LastOption,
    check_json,
    write_json_list,
)
from eupmim_dist.errors import UserError, short, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from eupmim_dist.evaluation.recommend import Item, Recommendations

MOST_TABLES = 100
"""Users whose items are shown."""


def recommend(
    run_or_checkpoint: Annotated[
        Path, typer.Argument(help="A run directory, a checkpoint, or a consolidated or imported model.")
    ],
    user: Annotated[list[str] | None, typer.Option(help="Raw user id, as in the source data; may be repeated.")] = None,
    users: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV, Parquet or JSONL with a column user, and perhaps history and attributes; or a list of ids.",
        ),
    ] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Everybody who has a history.")] = False,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="All users of train, valid or test.")] = None,
    history: Annotated[
        str | None,
        typer.Option(
            metavar='"ID ID ..."',
            help="Items of somebody new, oldest first, in place of a user; ids that hold blanks as a list in JSON.",
        ),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An attribute of that somebody, as in the source; may be repeated."),
    ] = None,
    top_n: Annotated[int, typer.Option(min=1, help="Items per user.")] = 10,
    items: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Recommend only these: a list of raw ids, or a table with a column item."),
    ] = None,
    include_seen: Annotated[bool, typer.Option(help="Recommend also what the user had already.")] = False,
    why: Annotated[bool, typer.Option("--why", help="Show which of the user's own items speak for each.")] = False,
    per_interest: Annotated[
        bool, typer.Option("--per-interest", help="A list for each of the user's interests.")
    ] = False,
    diversity: DiversityOption = 0.0,
    categories: CategoriesOption = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write to this .parquet, .jsonl or .csv instead of showing tables."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the recommendations to this file.")] = None,
    data: DataOption = None,
    last: LastOption = False,
) -> None:
    """Recommend items to users, from their whole history, with the interest that each item answers to.

    **Examples**

    `eupmim-dist recommend runs/example --user 42 --top-n 5 --why`

    `eupmim-dist recommend runs/example --user 42 --categories items.csv --diversity 0.5`

    `eupmim-dist recommend runs/shop --history "177 844 386" --profile age=25 --profile region=north`

    `eupmim-dist recommend runs/shop --history '["red shoes", "hat, blue"]'`

    `eupmim-dist recommend runs/example --all-users --out recommendations.parquet`

    `eupmim-dist recommend models/released --users users.csv --items in-stock.txt --out recommendations.jsonl`
    """
    from eupmim_dist import recommending
    from eupmim_dist.data.requests import ids_in_text

    _check_who(user, users, all_users, split, history, profile)
    if out is not None and json_file is not None:
        raise UserError("--json: --out has all of it; give one of them, such as --out recommendations.jsonl")
    check_json(json_file)
    wanted: dict[str, Any] = {
        "users": users or user or None,
        "all_users": all_users,
        "split": split,
        "histories": None if history is None else [ids_in_text(history, f"--history {short(history)}")],
        "attributes": _profile(profile),
        "top_n": top_n,
        "items": items,
        "exclude_seen": not include_seen,
        "why": why,
        "per_interest": per_interest,
        "diversity": diversity,
        "categories": categories,
        "data": data,
        "which": "last" if last else "best",
    }
    if out is not None:
        typer.echo(f"{out}: {recommending.write_recommendations(run_or_checkpoint, out, **wanted)}")
        return
    most = MOST_TABLES if json_file is None else None
    found = recommending.recommendations(run_or_checkpoint, most=most, **wanted)

    shown_too: list[Recommendations] = []

    def contents() -> Iterator[dict[str, Any]]:
        for entry in found:
            if len(shown_too) < MOST_TABLES:
                shown_too.append(entry)
            yield entry.as_dict()

    if json_file is not None:
        write_json_list(json_file, contents())
    for entry in found if json_file is None else shown_too:
        _show(entry, "given history" if history is not None else f"user {entry.user}")


def _check_who(
    user: list[str] | None,
    users: Path | None,
    all_users: bool,
    split: str | None,
    history: str | None,
    profile: list[str] | None,
) -> None:
    everybody = all_users or None
    given = {"--user": user or None, "--users": users, "--all-users": everybody, "--split": split, "--history": history}
    chosen = [option for option, value in given.items() if value is not None]
    if len(chosen) != 1:
        problem = f"{chosen[1]}: cannot go with {chosen[0]}; give" if chosen else "recommend: say to whom, by"
        raise UserError(f"{problem} one of --user ID, --users FILE, --all-users, --split NAME and --history IDS")
    if profile and history is None:
        raise UserError("--profile: describes whom --history is of; for others give a file of --users with attributes")


def _profile(given: list[str] | None) -> dict[str, list[str]] | None:
    if not given:
        return None
    values: dict[str, list[str]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(f"--profile {shown(text)}: give NAME=VALUE, such as age=25")
        if name in values:
            raise UserError(f"--profile {shown(text)}: {name} is given twice")
        values[name] = [value]
    return values


def _show(entry: Recommendations, who: str) -> None:
    from rich.table import Table

    from eupmim_dist.telemetry.log import console

    def labels(items: Sequence[Item]) -> str:
        return ", ".join(item.label for item in items) or "nothing"

    title = f"{who}, after {labels(entry.recent)}"
    lists = [(title, entry.items)]
    if entry.nearest is not None:
        console().print(title)
        lists = [
            (f"interest {number}, near {labels(near)}", [item for item in entry.items if item.interest == number])
            for number, near in enumerate(entry.nearest, start=1)
        ]
    for heading, items in lists:
        columns = {
            "#": [str(rank) for rank in range(1, len(items) + 1)],
            "item": [item.raw_id for item in items],
            "title": [item.title or "" for item in items],
            "score": [f"{item.score:.3f}" for item in items],
            "interest": [str(item.interest) for item in items],
            "because of": ["\n".join(reason.label for reason in item.because or []) for item in items],
        }
        left_out = {
            "title": not any(item.title for item in items),
            "interest": entry.nearest is not None,
            "because of": all(item.because is None for item in items),
        }
        columns = {name: cells for name, cells in columns.items() if not left_out.get(name)}
        table = Table(title=heading, title_justify="left")
        for name in columns:
            table.add_column(name, justify="right" if name in ("#", "score", "interest") else "left")
        for row in zip(*columns.values(), strict=True):
            table.add_row(*row)
        console().print(table)  # titles are not markup
