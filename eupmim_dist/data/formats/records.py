"""The records of a CSV file (RFC 4180) with their lines, for messages: polars names none of what it refuses."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path

from eupmim_dist.data.formats.lines import BLOCK_BYTES, CARRIAGE_RETURN, LONGEST_LINE, not_text
from eupmim_dist.errors import UserError

FIELD = re.compile(r'"[^"]*(?:""[^"]*)*"|[^",\r\n]*')
GZIP = b"\x1f\x8b"
OTHER_COMPRESSION = (b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x28\xb5\x2f\xfd")
"""How zlib and zstd begin, which polars reads too."""
MEND = "mend the quotes of this record"


def header(source: Path) -> list[str]:
    """The names of the columns. Raises UserError for what is no header line."""
    for _, record in records(source):
        if not record:
            raise UserError(f"{source}:1: the header line is blank; delete it")
        fields = _fields(record, f"{source}:1")
        return [field[1:-1].replace('""', '"') if field[:1] == '"' else field for field in fields]
    raise UserError(f"{source}: the file is empty")


def line_of(source: Path, row: int) -> int:
    """1-based line on which 0-based data `row` begins; quoted fields may hold line ends."""
    for number, (line, _) in enumerate(records(source), start=-1):
        if number == row:
            return line
    raise UserError(f"{source}: has been changed while it was read; run the command again")


def check_line_ends(source: Path, num_columns: int) -> None:
    """Raises UserError for a carriage return within a line, but in quotes: polars drops those that end a field."""
    with _opened(source) as stream:
        before = b""
        while block := stream.read(BLOCK_BYTES):
            block = before + block
            before = b"\r" if block.endswith(b"\r") else b""
            if block.count(b"\r") - len(before) > block.count(b"\r\n"):
                return check_records(source, num_columns)


def check_records(source: Path, num_columns: int) -> None:
    """Raises UserError for the first record that is malformed or has more fields than the header."""
    for line, record in records(source):
        fields = _fields(record, f"{source}:{line}")
        if len(fields) > num_columns:
            raise UserError(f"{source}:{line}: {len(fields)} fields, the header has {num_columns}")


def records(source: Path) -> Iterator[tuple[int, str]]:
    """The line that each record begins on, from 1, and the record without its line end; also of a gzipped file.

    A record ends with the first line that leaves no quote open, as polars has it.

    Raises:
        UserError: the file cannot be read, is not UTF-8, or leaves a quote open.
    """
    first, parts, is_open, size = 1, [], False, 0
    with _opened(source) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE), b""), start=1):
            is_open ^= line.count(b'"') % 2 == 1
            size += len(line)
            if size >= LONGEST_LINE:
                what = "leaves a quote open" if is_open else "ends nowhere; a line feed ends a line"
                raise UserError(f"{source}:{first}: {what} in {LONGEST_LINE >> 20} MB")
            parts.append(_decoded(source, line, number))
            if not is_open:
                yield first, "".join(parts).removesuffix("\n").removesuffix("\r")
                first, parts, size = number + 1, [], 0
    if is_open:
        raise UserError(f"{source}:{first}: a quote is opened and not closed; {MEND}")


@contextmanager
def _opened(source: Path) -> Iterator[BufferedIOBase]:
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


def _decoded(source: Path, line: bytes, number: int) -> str:
    with suppress(UnicodeDecodeError):
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    raise UserError(f"{source}:{number}: {not_text()}")


def _fields(record: str, where: str) -> list[str]:
    """As they stand, with their quotes. A quoted one may hold anything but a NUL. Raises UserError."""
    if "\0" in record:
        raise UserError(f"{where}: {not_text()}")
    if '"' not in record and "\r" not in record:
        return record.split(",")
    fields, at = [], 0
    while found := FIELD.match(record, at):
        fields.append(found[0])
        at = found.end()
        if at == len(record):
            return fields
        if record[at] != ",":
            break
        at += 1
    if record[at] == "\r":
        raise UserError(f"{where}: {CARRIAGE_RETURN}")
    raise UserError(f"{where}: a quote within a field, where only a pair in a quoted one may be; {MEND}")
