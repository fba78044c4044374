"""The records of a CSV file (RFC 4180) with their lines: polars names none of what it refuses, and skips none."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from eupmim_dist.data.formats.lines import BLOCK_BYTES, CARRIAGE_RETURN, LONGEST_LINE
from eupmim_dist.errors import UserError

GZIP = b"\x1f\x8b"
OTHER_COMPRESSION = (b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x28\xb5\x2f\xfd")
"""How zlib and zstd begin, which polars reads too."""
MEND = "mend the quotes of this record"
QUOTES, FIELDS, BLANK = "quotes are not in order", "wrong number of fields", "the line is blank"
RETURN = "a carriage return within the line"
"""Reasons why a record is none, as they are counted."""


@dataclass(frozen=True)
class Layout:
    """How a file is read. `trim`: blanks around fields are dropped. `least`: fields that a record has to have."""

    separator: str = ","
    trim: bool = False
    least: int = 1
    encoding: str = "utf-8"
    copy: Path | None = None
    """Of its text in UTF-8, where the file has another encoding; what did not decode is a NUL there."""
    mend: str = "convert the file to it"
    """What to do about bytes that are no text."""

    @cached_property
    def field(self) -> re.Pattern[str]:
        blanks, other = " *" if self.trim else "", re.escape(self.separator)
        return re.compile(f'{blanks}"[^"]*(?:""[^"]*)*"{blanks}|(?:[^"{other}\r\n][^{other}\r\n]*)?')

    @property
    def not_text(self) -> str:
        """The reason as it is counted."""
        return f"not {self.encoding.upper()} text"


COMMA = Layout()


@dataclass(frozen=True)
class Record:
    """`line` it begins on, from 1. `fields` as they stand, with their quotes, if nothing is wrong with it."""

    line: int
    fields: list[str]
    reason: str | None = None
    told: str = ""
    """The reason in full."""
    mend: str = ""

    @property
    def problem(self) -> str:
        return f"{self.told}; {self.mend}" if self.mend else self.told


def header(source: Path, layout: Layout = COMMA) -> list[str]:
    """The names of the columns. Raises UserError for what is no header line."""
    for record in records(source, layout):
        if record.reason or record.fields == [""]:
            problem = record.problem if record.reason else "the header line is blank; delete it"
            raise UserError(f"{source}:{record.line}: {problem}")
        return [field[1:-1].replace('""', '"') if field[:1] == '"' else field for field in record.fields]
    raise UserError(f"{source}: the file is empty")


def lines_of(source: Path, rows: list[int], layout: Layout = COMMA, num_columns: int | None = None) -> list[int]:
    """1-based lines on which 0-based data `rows`, which rise, begin; quoted fields may hold line ends.

    With `num_columns`, of the records that are good alone.
    """
    lines, wanted, number = [], iter([*rows, -1]), -1  # the header line
    row = next(wanted)
    for record in records(source, layout, num_columns):
        if num_columns is not None and record.reason:
            continue
        if number == row:
            lines.append(record.line)
            row = next(wanted)
            if row < 0:
                return lines
        number += 1
    raise UserError(f"{source}: has been changed while it was read; run the command again")


def check_characters(source: Path, num_columns: int, layout: Layout) -> None:
    """Raises UserError for what polars does not see: a carriage return within a line, but in quotes, as it drops those
    that end a field; and what did not decode.
    """
    if any(stray or (layout.copy and b"\0" in block) for block, stray in _blocks(layout.copy or source)):
        check_records(source, num_columns, layout)


def check_records(source: Path, num_columns: int, layout: Layout) -> None:
    """Raises UserError for the first record that is malformed or has more fields than the header."""
    for record in records(source, layout, num_columns):
        if record.reason:
            raise UserError(f"{source}:{record.line}: {record.problem}")


def is_regular(source: Path, layout: Layout, num_columns: int) -> bool:
    """Whether polars can be left alone with it, as it passes over lines that are blank or stop short.

    By counts: there are as many separators as such lines have, and no carriage return within a line. What has too
    many fields, or quotes that are not in order, polars refuses.
    """
    separator, inside, separators, lines, last = ord(layout.separator), 0, 0, 0, b"\n"
    for block, stray in _blocks(layout.copy or source):
        if stray or (layout.trim and b'"' in block) or (layout.copy and b"\0" in block):
            return False
        if inside or b'"' in block:
            characters = np.frombuffer(block, np.uint8)
            quotes = np.cumsum(characters == ord('"'), dtype=np.uint8)  # only whether it is odd counts
            outside = (quotes + inside) % 2 == 0
            separators += int(np.count_nonzero((characters == separator) & outside))
            lines += int(np.count_nonzero((characters == ord("\n")) & outside))
            inside = (inside + int(quotes[-1])) % 2
        else:
            separators += block.count(separator)
            lines += block.count(b"\n")
        last = block[-1:]
    return separators == (lines + (last != b"\n")) * (num_columns - 1)


def _blocks(source: Path) -> Iterator[tuple[bytes, bool]]:
    """A file's bytes, and whether a carriage return is among them that no line feed follows."""
    with opened(source) as stream:
        before = b""
        while block := stream.read(BLOCK_BYTES):
            whole = before + block
            before = b"\r" if whole.endswith(b"\r") else b""
            yield block, whole.count(b"\r") - len(before) > whole.count(b"\r\n")


def records(source: Path, layout: Layout = COMMA, num_columns: int | None = None) -> Iterator[Record]:
    """Every record, good or not, also of a gzipped file; `num_columns`: the most fields that one may have.

    A record ends with the first line that leaves no quote open, as polars has it. Where its quotes are not in order,
    only its first line is taken for bad.

    Raises:
        UserError: the file cannot be read, or a line does not end.
    """
    number, again = 1, deque[bytes]()
    with opened(layout.copy or source) as stream:

        def next_line() -> bytes:
            return again.popleft() if again else stream.readline(LONGEST_LINE)

        while line := next_line():
            if len(line) >= LONGEST_LINE:
                problem = f"ends nowhere; a line feed ends a line in {LONGEST_LINE >> 20} MB"
                raise UserError(f"{source}:{number}: {problem}")
            lines, size, is_open = [line], len(line), line.count(b'"') % 2 == 1
            while is_open and size < LONGEST_LINE and (line := next_line()):
                lines.append(line)
                size += len(line)
                is_open ^= line.count(b'"') % 2 == 1
            record = None if is_open else _examined(b"".join(lines), number, layout, num_columns)
            if record is None or record.reason in (QUOTES, RETURN):
                again.extendleft(reversed(lines[1:]))
                del lines[1:]
                if record is None:
                    record = Record(number, [], QUOTES, "a quote is opened and not closed", MEND)
            yield record
            number += len(lines)


@contextmanager
def opened(source: Path) -> Iterator[BufferedIOBase]:
    """A file, or what gzip has packed. Raises UserError where it cannot be read, also in the body."""
    try:
        with source.open("rb") as stream:
            begin = stream.read(4)
        if begin.startswith(OTHER_COMPRESSION):
            raise UserError(f"{source}: is compressed, and not by gzip; decompress it first")
        with gzip.open(source) if begin.startswith(GZIP) else source.open("rb") as stream:
            yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{source}: what gzip made is damaged ({error}); copy it again") from None
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None


def _examined(raw: bytes, number: int, layout: Layout, num_columns: int | None) -> Record:
    line, is_text = number, True
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        text, line, is_text = raw.decode("utf-8", "replace"), number + raw.count(b"\n", 0, error.start), False
    text = text.removesuffix("\n").removesuffix("\r")
    fields, problem = _fields(text, layout)
    if problem and (is_text or "\n" in text):
        is_return = problem == CARRIAGE_RETURN
        return Record(number, [], RETURN if is_return else QUOTES, problem, "" if is_return else MEND)
    if not is_text or "\0" in text:
        return Record(line, [], layout.not_text, layout.not_text, layout.mend)
    if len(fields) < layout.least and not text:
        return Record(number, [], BLANK, BLANK, "delete it")
    if len(fields) < layout.least or len(fields) > (num_columns or len(fields)):
        fields_told = f"{len(fields)} field{'s' * (len(fields) != 1)}, the header has {num_columns}"
        return Record(number, [], FIELDS, fields_told)
    return Record(number, fields)


def _fields(record: str, layout: Layout) -> tuple[list[str], str | None]:
    """As they stand, with their quotes, and what is wrong with them; a quoted one may hold anything."""
    if '"' not in record and "\r" not in record:
        fields = record.split(layout.separator)
        return ([field.strip() for field in fields] if layout.trim else fields), None
    fields, at = [], 0
    while found := layout.field.match(record, at):
        fields.append(found[0].strip() if layout.trim else found[0])
        at = found.end()
        if at == len(record):
            return fields, None
        if record[at] != layout.separator:
            break
        at += 1
    if record[at] == "\r":
        return [], CARRIAGE_RETURN
    return [], "a quote within a field, where only a pair in a quoted one may be"
