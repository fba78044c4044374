"""Text files with separators and a header line (RFC 4180 quoting), with the columns named by options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.bad_rows import BadRow, BadRows
from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.formats.parts import Part, name_of, part_files
from eupmim_dist.data.formats.records import Layout, is_regular, lines_of, records
from eupmim_dist.data.formats.separators import WHOLE_LINES, TextFile, Told, found_file
from eupmim_dist.data.formats.table import Plan, Tell, dataset_from_parts
from eupmim_dist.data.frames import reading, scan_csv
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError

ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")


def read(sources: Sequence[Path], options: Options, workspace: Path, progress: OnStage, tell: Tell) -> Dataset:
    """Read files, which may be larger than memory: the mapped columns go through files in `workspace`."""
    told = Told(options.separator, options.encoding, options.trim, "--")
    told.check()
    plan, bad, layouts = Plan(options), BadRows(), Counter[str]()
    parts = []
    for number, file in enumerate(part_files(sources, ENDINGS, "the format expects one with a header line")):
        progress(f"reading {file.name}", 0, 0)
        text, columns = _found(file, plan, told, workspace / f"text-{number}.csv")
        layouts[text.described] += 1
        parts.append(_part(text, columns, plan, number, bad, workspace))
    files = len(parts)
    layouts_told = [f"{count:,} x {layout}" if len(layouts) > 1 else layout for layout, count in layouts.items()]
    tell("source", f"{files:,} text file{'s' * (files > 1)}: {'; '.join(layouts_told)}")
    tell("columns", plan.described)
    return dataset_from_parts(parts, name_of(sources), plan, bad, progress, tell)


def _found(file: Path, plan: Plan, told: Told, copy: Path) -> tuple[TextFile, dict[str, int]]:
    """How a file is to be read, and which of its columns, by role."""
    asked = [*plan.names.values(), *(condition.column for condition in plan.conditions)]
    found = found_file(file, [(name,) for name in asked], told, copy)
    read_as = "" if told.encoding is None else f" read as {found.layout.encoding.upper()},"
    columns = plan.columns(f"{file}:{read_as}", found.names)
    return replace(found, layout=replace(found.layout, least=max(columns.values()) + 1)), columns


def _part(text: TextFile, columns: dict[str, int], plan: Plan, number: int, bad: BadRows, workspace: Path) -> Part:
    """By polars alone; record by record only where it refuses the file, or might pass over something."""
    file, layout, num_columns = text.file, text.layout, len(text.names)
    events = workspace / f"events-{number}.parquet"
    if is_regular(file, layout, num_columns):
        try:
            with reading(file):
                num_rows = _spill(text.scan(), text, columns, plan, events)
        except UserError:
            if not any(record.reason for record in records(file, layout, num_columns)):
                raise
        else:
            return Part(str(file), events, num_rows, partial(_located, file, layout, None))
    good = workspace / f"good-{number}.csv"
    _copy_good(text, number, bad, good)
    with reading(file):
        num_rows = _spill(scan_csv(good, layout.separator), text, columns, plan, events)
    good.unlink()
    return Part(str(file), events, num_rows, partial(_located, file, layout, num_columns))


def _spill(table: pl.LazyFrame, text: TextFile, columns: dict[str, int], plan: Plan, events: Path) -> int:
    by_role = table.select(pl.nth(number).alias(role) for role, number in columns.items())
    return plan.spill(by_role, str(text.file), events, WHOLE_LINES)


def _copy_good(text: TextFile, number: int, bad: BadRows, good: Path) -> None:
    """The header and the records in which nothing is wrong, in UTF-8; the others are added to `bad`."""
    separator = text.layout.separator
    with good.open("w", encoding="utf-8", newline="") as out:
        for record in records(text.file, text.layout, len(text.names)):
            if record.reason:
                place = f"{text.file}:{record.line}"
                bad.add(record.reason, 1, [BadRow((number, record.line), place, record.told)], record.mend)
            else:
                out.write(separator.join(record.fields) + "\n")


def _located(file: Path, layout: Layout, num_columns: int | None, rows: list[int]) -> list[tuple[int, str]]:
    return [(line, f"{file}:{line}") for line in lines_of(file, rows, layout, num_columns)]
