"""Who is to be recommended to, and what may be: rows of text from a file or from Python, not yet looked up in a store.

A row has the column `user` or `item`, and of users perhaps `history` and attributes by their names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from eupmim_dist.data.formats.lines import blocks
from eupmim_dist.data.formats.parquet import as_text
from eupmim_dist.data.formats.records import lines_of
from eupmim_dist.data.formats.separators import UNTOLD, WHOLE_LINES, Told, small_text_file
from eupmim_dist.data.formats.table import column_number
from eupmim_dist.data.frames import reading, scan_parquet
from eupmim_dist.errors import UserError, short, shown
from eupmim_dist.files import regular_file

HISTORY = "history"
"""The column with a user's items, oldest first: a list of raw ids, or text as of `ids_in_text`."""


@dataclass(frozen=True)
class Requests:
    rows: pl.DataFrame
    """Every column String, but `history` List(String)."""
    locate: Callable[[int], str]
    """What messages call a row, counted from 0."""
    named: bool = True
    """False where `user` only numbers histories: no user of a store is meant, were one called so."""
    described: str = ""
    """Separator and encoding of a text file, for people."""


def read_requests(
    file: Path, needed: str, others: Collection[str] = (), asked: Sequence[Collection[str]] = (), told: Told = UNTOLD
) -> Requests:
    """The rows of a CSV, Parquet or JSONL file, by its ending; any other is a list of ids, one a line.

    Column `needed`, without gaps, and those of `others` that the file has. What is `asked`, and `told`, as of
    `found_file`, is for text with separators, which any other ending is then. Raises UserError.
    """
    mend = "" if asked else ", or a list of ids"
    regular_file(file, f"give a CSV, Parquet or JSONL file with a column {needed}{mend}")
    match file.suffix.lower():
        case ".parquet":
            found = _from_parquet(file, needed, others)
        case ".jsonl":
            found = _from_jsonl(file, needed, others)
        case ending if asked or ending in (".csv", ".tsv"):
            found = _from_csv(file, needed, others, asked, told)
        case _:
            found = _from_list(file, needed)
    if (option := told.first) and not found.described:
        raise UserError(f"{option}: is of csv files alone, and {file} is none; leave it out")
    if found.rows.schema.get(HISTORY) == pl.String:
        found = replace(found, rows=found.rows.with_columns(_lists(found).alias(HISTORY)))
    ids = found.rows[needed]
    if not len(ids):
        raise UserError(f"{file}: has no {needed}s; give at least one")
    if (gaps := (ids.is_null() | (ids == "")).arg_true()).len():
        raise UserError(f"{found.locate(gaps[0])}: the {needed} is missing; mend or delete the row")
    return found


def ids_in_text(text: str, where: str) -> list[str]:
    """Ids with blanks between them or, of ids that hold blanks, a list in JSON. Raises UserError."""
    if not text.lstrip().startswith("["):
        return text.split()
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: begins as a list in JSON and is none ({short(error)}); give one such as "
            '["a 1", "[b]"], or ids with blanks between them'
        ) from None
    return [_value(where, "an item of the history", item) for item in ids]


def _lists(requests: Requests) -> pl.Series:
    """The histories of a column of text."""
    texts = requests.rows[HISTORY]
    in_json = texts.str.strip_chars_start().str.starts_with("[").fill_null(False)
    if not in_json.any():
        return texts.str.extract_all(r"\S+")
    found = [None if text is None else ids_in_text(text, requests.locate(row)) for row, text in enumerate(texts)]
    return pl.Series(found, dtype=pl.List(pl.String))


def _from_list(file: Path, needed: str) -> Requests:
    lines = [(number, line) for number, line in _lines(file) if line]
    rows = pl.DataFrame({needed: [line for _, line in lines]}, schema={needed: pl.String})
    return Requests(rows, lambda row: f"{file}:{lines[row][0]}")


def _from_csv(
    file: Path, needed: str, others: Collection[str], asked: Sequence[Collection[str]], told: Told
) -> Requests:
    asked = [(needed,), *asked]
    with small_text_file(file, asked, told) as text:
        columns = _columns(file, text.names, needed, others)
        table = text.scan().select(pl.nth(number).alias(name) for name, number in columns.items())
        rows = table.collect(optimizations=WHOLE_LINES)

    def locate(row: int) -> str:
        with small_text_file(file, asked, told) as again:
            return f"{file}:{lines_of(file, [row], again.layout)[0]}"

    return Requests(rows, locate, described=text.described)


def _from_parquet(file: Path, needed: str, others: Collection[str]) -> Requests:
    with reading(file):
        table = scan_parquet(file)
        schema = table.collect_schema()
        names = schema.names()
        columns = _columns(file, names, needed, others)
        rows = table.select(
            _converted(file, pl.nth(number), names[number], schema[names[number]], name).alias(name)
            for name, number in columns.items()
        ).collect()
    return Requests(rows, lambda row: f"{file}: row {row + 1}")


def _columns(file: Path, names: list[str], needed: str, others: Collection[str]) -> dict[str, int]:
    wanted = [needed, *(name for name in others if name in names and name != needed)]
    return {name: column_number(f"{file}:", name, names) for name in wanted}


def _converted(file: Path, value: pl.Expr, column: str, dtype: pl.DataType, name: str) -> pl.Expr:
    if name != HISTORY:
        role = name if name in ("user", "item") else f"attribute {name}"
        return as_text(file, value, column, dtype, role)
    if isinstance(dtype, pl.List | pl.Array) and (dtype.inner.is_integer() or dtype.inner == pl.String):
        return value.cast(pl.List(dtype.inner)).cast(pl.List(pl.String))
    if dtype == pl.String:
        return value
    raise UserError(f"{file}: column {HISTORY} is {short(dtype)}; give lists of ids, or text with blanks between ids")


def _from_jsonl(file: Path, needed: str, others: Collection[str]) -> Requests:
    names = [needed, *(name for name in others if name != needed)]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    numbers = []
    for number, line in _lines(file):
        if not line:
            continue
        for name, value in _fields(f"{file}:{number}", line, names).items():
            columns[name].append(value)
        numbers.append(number)
    kept = {name: values for name, values in columns.items() if name == needed or any(v is not None for v in values)}
    schema = {name: pl.List(pl.String) if name == HISTORY else pl.String() for name in kept}
    return Requests(pl.DataFrame(kept, schema=schema), lambda row: f"{file}:{numbers[row]}")


def _fields(where: str, line: str, names: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(line)
        line.encode() if line.isascii() else json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is no line of JSON ({short(error)}); mend or delete it") from None
    if not isinstance(content, dict):
        raise UserError(f'{where}: is {shown(content)}, not an object such as {{"{names[0]}": ...}}')
    return {name: _value(where, name, content.get(name)) for name in names}


def _value(where: str, name: str, value: Any) -> Any:
    if name == HISTORY and isinstance(value, str):
        return ids_in_text(value, where)
    if name == HISTORY and isinstance(value, list):
        return [_value(where, "an item of the history", item) for item in value]
    if value is None and not name.startswith("an item"):
        return None
    is_id = name in ("user", "item") or name.startswith("an item")
    if isinstance(value, str | int if is_id else str | int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: {name} is {shown(value)}; give text or an integer")


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, and their numbers from 1."""
    number = 0
    for lines in blocks(file):
        for line in lines:
            number += 1
            yield number, line
