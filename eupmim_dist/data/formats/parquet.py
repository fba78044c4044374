"""Any parquet files, and data frames, with the columns named by options."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import polars as pl

from eupmim_dist.data.formats.bad_rows import BadRows
from eupmim_dist.data.formats.lines import OnStage
from eupmim_dist.data.formats.options import Options
from eupmim_dist.data.formats.parts import Part, name_of, part_files
from eupmim_dist.data.formats.table import Plan, Tell, dataset_from_parts
from eupmim_dist.data.frames import reading, scan_parquet
from eupmim_dist.data.writer import Dataset
from eupmim_dist.errors import UserError, short, shown

ENDINGS = (".parquet",)


def read(sources: Sequence[Path], options: Options, workspace: Path, progress: OnStage, tell: Tell) -> Dataset:
    """Read files, which may be larger than memory: the mapped columns go through files in `workspace`.

    Times: integers, dates (stored as microseconds), or text as in csv.
    """
    plan, parts = _plan_of(options), []
    for number, file in enumerate(part_files(sources, ENDINGS, "the format expects parquet files")):
        progress(f"reading {file.name}", 0, 0)
        with reading(file):
            parts.append(_part(scan_parquet(file), str(file), plan, workspace / f"events-{number}.parquet", first=1))
    tell("source", f"{len(parts)} Parquet file{'s' * (len(parts) > 1)}")
    return _dataset(parts, name_of(sources), plan, progress, tell)


def read_frame(frame: pl.LazyFrame, options: Options, workspace: Path, progress: OnStage, tell: Tell) -> Dataset:
    """As `read`, of a table of any origin, whose rows are numbered from 0."""
    source, plan = "data frame", _plan_of(options)
    with reading(source, "mend it, or give a frame that has been collected"):
        part = _part(frame, source, plan, workspace / "events.parquet", first=0)
    return _dataset([part], source, plan, progress, tell)


def _plan_of(options: Options) -> Plan:
    for name in ("separator", "encoding"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name}: is of csv files alone; leave it out")
    return Plan(options)


def _dataset(parts: list[Part], source: str, plan: Plan, progress: OnStage, tell: Tell) -> Dataset:
    tell("columns", plan.described)
    return dataset_from_parts(parts, source, plan, BadRows(), progress, tell)


def _part(table: pl.LazyFrame, source: str, plan: Plan, events: Path, first: int) -> Part:
    schema = table.collect_schema()
    names = schema.names()
    columns = plan.columns(f"{source}:", names)
    selected = table.select(
        _converted(source, role, number, names[number], schema[names[number]]) for role, number in columns.items()
    )
    return Part(source, events, plan.spill(selected, source, events), partial(_located, source, first))


def _located(source: str, first: int, rows: list[int]) -> list[tuple[int, str]]:
    return [(row, f"{source}: row {row + first}") for row in rows]


def _converted(source: str, role: str, number: int, column: str, dtype: pl.DataType) -> pl.Expr:
    value = pl.nth(number)
    if role == "time" and dtype in (pl.Categorical, pl.Enum):
        return value.cast(pl.String).alias(role)
    if role == "time" or role.startswith("where "):
        return value.alias(role)
    return as_text(source, value, column, dtype, role).alias(role)


def as_text(source: Path | str, value: pl.Expr, column: str, dtype: pl.DataType, role: str) -> pl.Expr:
    """A column of ids or labels as text; `role` is what it is for. Raises UserError for what has no plain text."""
    if dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum):
        return value.cast(pl.String)
    if not role.startswith(LABELS):
        raise UserError(f"{source}: column {shown(column)} is {short(dtype)}; the {role} is an integer or a string")
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object, pl.Duration):
        raise UserError(f"{source}: column {shown(column)} is {short(dtype)}; a label is text, a number or a date")
    return value.cast(pl.String)


LABELS = ("attribute ", "category")
"""What a column may be for whose values are only told apart."""
