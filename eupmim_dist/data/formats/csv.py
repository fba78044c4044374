"""Text files with separators and a header line (RFC 4180 quoting), with the columns named by options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.bad_rows import BadRow, BadRows
from eupmim_dist.data.formats.encodings import MEND, check_encoding, copy_as_utf8, encoding_of
from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.formats.parts import Part, name_of, part_files
from eupmim_dist.data.formats.records import Layout, check_records, header, is_regular, lines_of, records
from eupmim_dist.data.formats.table import Plan, Tell, dataset_from_parts
from eupmim_dist.data.frames import reading, scan_csv
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, short

ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
WHOLE_LINES = pl.QueryOptFlags(projection_pushdown=False)
"""Without it unused columns are not parsed, and a line with too many fields passes."""


def read(sources: Sequence[Path], options: Options, workspace: Path, progress: OnStage, tell: Tell) -> Dataset:
    """Read files, which may be larger than memory: the mapped columns go through files in `workspace`."""
    check_encoding(options.encoding)
    plan, bad, layouts = Plan(options), BadRows(), Counter[str]()
    parts = []
    for number, file in enumerate(part_files(sources, ENDINGS, "the format expects one with a header line")):
        progress(f"reading {file.name}", 0, 0)
        found = _found(file, plan, workspace / f"text-{number}.csv")
        layouts[found.described] += 1
        parts.append(_part(file, found, plan, number, bad, workspace))
    files = len(parts)
    told = [f"{count:,} x {layout}" if len(layouts) > 1 else layout for layout, count in layouts.items()]
    tell("source", f"{files:,} text file{'s' * (files > 1)}: {'; '.join(told)}")
    tell("columns", plan.described)
    return dataset_from_parts(parts, name_of(sources), plan, bad, progress, tell)


@dataclass(frozen=True)
class _Found:
    """How a file is to be read, and which of its columns, by role."""

    layout: Layout
    num_columns: int
    columns: dict[str, int]
    described: str


def _found(file: Path, plan: Plan, copy: Path) -> _Found:
    """Raises UserError where two separators fit, or none."""
    options = plan.options
    encoding, by_mark = encoding_of(file, options.encoding)
    layout = Layout(trim=options.trim, encoding=encoding, mend=MEND)
    if encoding != "utf-8":
        copy_as_utf8(file, encoding, copy)
        layout = replace(layout, copy=copy)
    candidates, failed = {}, None
    for separator in SEPARATORS if options.separator is None else [_separator(options.separator)]:
        try:
            names = header(file, replace(layout, separator=separator))
        except UserError as error:  # its quotes are not in order with another one
            failed = failed or error
        else:
            candidates[separator] = [name.strip() for name in names] if options.trim else names
    if not candidates and failed:
        raise failed
    asked = {*plan.names.values(), *(condition.column for condition in plan.conditions)}
    fitting = [separator for separator, names in candidates.items() if asked <= set(names)]
    if len({tuple(candidates[separator]) for separator in fitting}) > 1:
        one, other = (SEPARATORS[separator] for separator in fitting[:2])
        raise UserError(f"{file}: its header has the columns by {one} and by {other}; say which with --separator")
    separator = max(fitting or candidates, key=lambda each: len(candidates[each]))
    names = candidates[separator]
    if not fitting and asked <= {name.strip() for name in names}:
        raise UserError(f"{file}: there are blanks around the names of its columns; --trim drops them")
    read_as = "" if options.encoding is None else f" read as {encoding.upper()},"
    columns = plan.columns(f"{file}:{read_as}", names)
    layout = replace(layout, separator=separator, least=max(columns.values()) + 1)
    described = f"{SEPARATORS.get(separator, repr(separator))}, {encoding.upper()}"
    return _Found(layout, len(names), columns, described + " (byte-order mark)" * by_mark)


def _separator(given: str) -> str:
    separator = {"tab": "\t", "\\t": "\t"}.get(given, given)
    if len(separator) != 1 or separator in '"\r\n' or not (separator == "\t" or " " <= separator <= "~"):
        raise UserError(f"--separator {short(given)}: give one character, such as ; or |, or tab")
    return separator


def _part(file: Path, found: _Found, plan: Plan, number: int, bad: BadRows, workspace: Path) -> Part:
    """By polars alone; record by record only where it refuses the file, or might pass over something."""
    events = workspace / f"events-{number}.parquet"
    if is_regular(file, found.layout, found.num_columns):
        try:
            with reading(file):
                num_rows = _spill(found.layout.copy or file, file, found, plan, events)
        except UserError:
            if not _is_malformed(file, found):
                raise
        else:
            return Part(str(file), events, num_rows, partial(_located, file, found.layout, None))
    good = workspace / f"good-{number}.csv"
    _copy_good(file, found, number, bad, good)
    with reading(file):
        num_rows = _spill(good, file, found, plan, events)
    good.unlink()
    return Part(str(file), events, num_rows, partial(_located, file, found.layout, found.num_columns))


def _spill(text: Path, file: Path, found: _Found, plan: Plan, events: Path) -> int:
    table = scan_csv(text, found.layout.separator)
    columns = table.select(pl.nth(number).alias(role) for role, number in found.columns.items())
    return plan.spill(columns, str(file), events, WHOLE_LINES)


def _is_malformed(file: Path, found: _Found) -> bool:
    return any(record.reason for record in records(file, found.layout, found.num_columns))


def _copy_good(file: Path, found: _Found, number: int, bad: BadRows, good: Path) -> None:
    """The header and the records in which nothing is wrong, in UTF-8; the others are added to `bad`."""
    separator = found.layout.separator
    with good.open("w", encoding="utf-8", newline="") as out:
        for record in records(file, found.layout, found.num_columns):
            if record.reason:
                place = f"{file}:{record.line}"
                bad.add(record.reason, 1, [BadRow((number, record.line), place, record.told)], record.mend)
            else:
                out.write(separator.join(record.fields) + "\n")


def _located(file: Path, layout: Layout, num_columns: int | None, rows: list[int]) -> list[tuple[int, str]]:
    return [(line, f"{file}:{line}") for line in lines_of(file, rows, layout, num_columns)]


@contextmanager
def reading_csv(source: Path, names: list[str]) -> Iterator[None]:
    """Around what has polars read a file with a header of these names: UserError, with the line where there is one."""
    with reading(source):
        try:
            yield
        except (pl.exceptions.PolarsError, OSError):
            check_records(source, len(names))
            raise
