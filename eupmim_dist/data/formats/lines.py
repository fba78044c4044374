"""Strict reading of delimited text: every line matches the layout to the character, or its number is named.

No CSV reader is used, because those skip blank lines, fill short ones with nulls and take " 3" for a number.
"""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from eupmim_dist.errors import UserError, short, shown
from eupmim_dist.files import is_there, regular_file

OnStage = Callable[[str, int, int], None]  # (what, done, total); total 0: not known beforehand
BLOCK_BYTES = 1 << 24
LONGEST_LINE = 1 << 26  # bytes


@dataclass(frozen=True)
class Column:
    """A field of a line: `pattern` (a regular expression without groups) is all it may hold.

    `rest`: the last field may go on to the end of the line, separators and all.
    """

    name: str
    pattern: str = "0|[1-9][0-9]{0,17}"
    meaning: str = "an integer from 0"
    dtype: pl.DataType | type[pl.DataType] = pl.Int64
    rest: bool = False


USER = Column("user", meaning="a user id from 0")
ITEM = Column("item", "[1-9][0-9]{0,17}", "an item id from 1 (0 is padding)")
ORDER = Column("order", meaning="a position from 0")


def existing_file(path: Path) -> Path:
    """`path`, or a UserError that says which file is missing, or what it is instead."""
    return regular_file(path, "the format expects it")


def optional_file(path: Path) -> Path | None:
    """`path`, None if nothing has that name, or a UserError if it is no file."""
    return regular_file(path, "mend or remove it") if is_there(path) else None


def bad_line(path: Path, row: int, problem: str, *, first_line: int = 1) -> UserError:
    """The error for 0-based `row` of a file read by `read_lines`."""
    return UserError(f"{path}:{row + first_line}: {problem}")


def blocks(path: Path, encoding: str = "utf-8", progress: OnStage | None = None) -> Iterator[list[str]]:
    """The lines of a text file without their ends, some 16 MB at a time.

    Raises:
        UserError: the file is missing, unreadable, empty or not in `encoding`.
    """
    existing_file(path)
    line, rest, done, total = 1, b"", 0, path.stat().st_size
    if total == 0:
        raise UserError(f"{path}: the file is empty")
    try:
        with path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                done += len(block)
                whole, newline, tail = block.rpartition(b"\n")
                if newline:
                    lines = _decoded(path, rest + whole, line, encoding)
                    rest, line = tail, line + len(lines)
                    yield lines
                else:
                    rest += block
                if len(rest) > LONGEST_LINE:
                    problem = f"a line of more than {LONGEST_LINE >> 20} MB; a line feed ends a line"
                    raise bad_line(path, 0, problem, first_line=line)
                if progress:
                    progress(f"reading {path.name}", done, total)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if rest:
        yield _decoded(path, rest, line, encoding)


def _decoded(path: Path, block: bytes, first_line: int, encoding: str) -> list[str]:
    if first_line == 1:
        block = block.removeprefix(BOM_UTF8)
    try:
        text = block.decode(encoding).replace("\r\n", "\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        line = first_line + block.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: {not_text(encoding)}") from None
    for character, problem in ODD_CHARACTERS.items():
        if character in text:
            line = first_line + text.count("\n", 0, text.index(character))
            raise UserError(f"{path}:{line}: {problem or not_text(encoding)}")
    return text.split("\n")


def not_text(encoding: str = "utf-8") -> str:
    """What to say of bytes that are something else."""
    return f"not {encoding.upper()} text; convert the file to it"


CARRIAGE_RETURN = "a carriage return within the line; a line feed ends a line, or both"
ODD_CHARACTERS = {
    "\0": None,
    "\r": CARRIAGE_RETURN,
    "\ufeff": "a byte-order mark within the text; delete it",
}
"""What would become part of an id, unseen, and what to say of it: nothing of what only UTF-16 or no text at all has."""


def read_lines(
    path: Path,
    columns: list[Column],
    *,
    separator: str = ",",
    encoding: str = "utf-8",
    header: bool = False,
    keep: pl.Expr | None = None,
    progress: OnStage | None = None,
) -> pl.DataFrame:
    """Read a delimited text file into a frame with `columns`, one row a line, in file order.

    `header`: the first line is skipped. `keep`: filters the rows of each block as it is read.

    Raises:
        UserError: the file cannot be read or a line does not match the columns; names the file and the line.
    """
    pattern = "^" + re.escape(separator).join(f"({column.pattern})" for column in columns) + "$"
    schema = {column.name: column.dtype for column in columns}
    frames = []
    line = 1
    for lines in blocks(path, encoding, progress):
        skipped = 1 if header and line == 1 else 0
        if skipped and re.match(pattern, lines[0]):
            raise bad_line(path, 0, "data, where the format has a header line; put one there")
        fields = pl.Series(lines[skipped:], dtype=pl.String).str.extract_groups(pattern).struct.unnest()
        unmatched = fields.to_series(0).is_null().arg_true()
        if unmatched.len():
            row = skipped + unmatched[0]
            raise bad_line(path, row, _problem(lines[row], columns, separator), first_line=line)
        frame = fields.rename(dict(zip(fields.columns, schema, strict=True))).cast(schema)  # type: ignore[arg-type]
        frames.append(frame if keep is None else frame.filter(keep))
        line += len(lines)
    return pl.concat(frames)


def _problem(line: str, columns: list[Column], separator: str) -> str:
    if not line:
        return "the line is blank; delete it"
    fields = line.split(separator, len(columns) - 1 if columns[-1].rest else -1)
    if len(fields) != len(columns):
        layout = separator.join(column.name for column in columns)
        return f"{len(fields)} fields, expected {len(columns)}: {layout}"
    for field, column in zip(fields, columns, strict=True):
        if not re.fullmatch(column.pattern, field):
            return f"{column.name} is {shown(field)}, expected {column.meaning}"
    return f"cannot be read as {separator.join(column.name for column in columns)}"


def read_map(path: Path, num_rows: int, first_id: int) -> pl.Series:
    """Raw ids by id from a file of `raw,id` lines: String [num_rows], null where the file names none.

    Entry i belongs to id `first_id + i`.

    Raises:
        UserError: a malformed line, an id outside the data, or an id or raw id named twice.
    """
    frame = read_lines(path, [Column("raw_id", ".+", "a raw id", pl.String), Column("id")])
    last = first_id + num_rows - 1
    outside = frame.select(~pl.col("id").is_between(first_id, last)).to_series().arg_true()
    if outside.len():
        raise bad_line(path, outside[0], f"id {frame['id'][outside[0]]} is not in the data ({first_id}..{last})")
    for name in ("id", "raw_id"):
        repeated = (~frame[name].is_first_distinct()).arg_true()
        if repeated.len():
            raise bad_line(path, repeated[0], f"{name} {short(frame[name][repeated[0]])} is mapped twice")
    ids = pl.DataFrame({"id": pl.int_range(first_id, last + 1, eager=True)})
    return ids.join(frame, on="id", how="left", maintain_order="left")["raw_id"]
