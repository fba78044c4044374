"""Options that several subcommands share, and how their values are read."""

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from eupmim_dist.errors import UserError, short, shown
from eupmim_dist.files import check_out, replace_text, writing

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="Interaction store, if it no longer lies where the run found it."),
]
LastOption = Annotated[bool, typer.Option("--last", help="Of a run directory take the last checkpoint, not the best.")]


DiversityOption = Annotated[
    float,
    typer.Option(
        metavar="STRENGTH",
        help="Re-rank for variety: what an item's score loses for each item of its category above it, in units of "
        "the scores shown; 0 changes nothing. Needs --categories.",
    ),
]
CategoriesOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="CSV or Parquet with columns item, of raw ids, and category."),
]

# Of a benchmark of one table.
Rows = Annotated[int, typer.Option(min=1, help="Rows of the table.")]
Width = Annotated[int, typer.Option(min=1, help="Width of a row.")]
Samples = Annotated[int, typer.Option(min=1, help="Samples per rank and step.")]
IdsPerSample = Annotated[int, typer.Option(min=1, help="Ids that each sample looks up.")]
Ids = Annotated[Literal["zipf", "uniform"], typer.Option(help="zipf: popular rows, exponent 1.2; uniform: all alike.")]


def check_json(file: Path | None) -> None:
    """Refuses a `--json` that cannot be written, before the work whose result it is for."""
    if file is None:
        return
    check_out(file, f"--json {file}")
    code = None
    if file.is_dir():
        code = errno.EISDIR
    elif not file.parent.is_dir():
        code = errno.ENOENT
    elif not os.access(file if file.exists() else file.parent, os.W_OK):
        code = errno.EACCES
    if code is not None:
        raise UserError(f"--json {file}: cannot be written: {os.strerror(code)}")


def write_json(file: Path | None, content: Any, **options: Any) -> None:
    """Writes what `--json` asks for, if it does; `options` of `json.dumps`. Raises UserError."""
    if file is not None:
        with writing(f"--json {file}"):
            replace_text(file, json.dumps(content, indent=1, **options) + "\n")


def write_json_list(file: Path, entries: Iterable[Any]) -> None:
    """The same for a list, an entry a line, in memory that does not grow with it."""

    def pieces() -> Iterator[str]:
        before = "[\n"
        for entry in entries:
            yield before + json.dumps(entry, ensure_ascii=False)
            before = ",\n"
        yield "[]\n" if before == "[\n" else "\n]\n"

    with writing(f"--json {file}"):
        replace_text(file, pieces())


def comma_separated(option: str, values: list[str]) -> list[str]:
    """`["a,b", "c"]` -> `["a", "b", "c"]`, without repeats; UserError for an empty name."""
    names = list(dict.fromkeys(part.strip() for value in values for part in value.split(",")))
    if "" in names:
        raise UserError(f"{option} {shown(','.join(values))}: holds an empty name; separate names by single commas")
    return names


def cutoffs(text: str) -> list[int]:
    """`10,20` -> `[10, 20]`."""
    parts = [part.strip() for part in text.split(",")]
    numbers = sorted({int(part) for part in parts}) if all(re.fullmatch("[0-9]{1,18}", part) for part in parts) else []
    if not numbers or numbers[0] < 1:
        raise UserError(f"--top-n {short(text)}: give whole numbers from 1, separated by commas, such as 10,20,50")
    return numbers
